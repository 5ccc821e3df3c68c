/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvirt's XML, read with XPath and written with escaped printf. Which drives can be backed up is decided here, from
 * facts of the XML alone: writes to a shareable disk or through SCSI passthrough go past QEMU's block layer, so its
 * copy-before-write would miss them and hand out wrong bytes.
 */
#include "domain.h"

#include "vmsnap/error.h"
#include "xml.h"

static void domain_disk_free(gpointer data) {
    VmsnapDomainDisk *disk = data;
    vmsnap_drive_clear(&disk->base);
    g_free(disk->format);
    g_strfreev(disk->chain);
    g_free(disk->node);
    g_free(disk);
}

static void domain_file_free(gpointer data) {
    VmsnapDomainFile *file = data;
    g_free(file->path);
    g_free(file);
}

void vmsnap_domain_free(VmsnapDomain *domain) {
    if (!domain)
        return;
    g_free(domain->name);
    g_free(domain->uuid);
    g_ptr_array_unref(domain->disks);
    g_ptr_array_unref(domain->files);
    g_free(domain);
}

/* The first rule that fits decides. Expressions are relative to the <disk> element. */
static const struct {
    const char *expression;
    VmsnapMedia media;
    const char *reason;
} media_rules[] = {
    {"@device='cdrom'", VMSNAP_MEDIA_LEFT_OUT, "is a CD-ROM"},
    {"@device='floppy'", VMSNAP_MEDIA_LEFT_OUT, "is a floppy"},
    {"@type='vhostuser' or @type='vhostvdpa'", VMSNAP_MEDIA_REFUSED, "is served by another process than QEMU"},
    {"not(source)", VMSNAP_MEDIA_LEFT_OUT, "has no medium"},
    {"readonly", VMSNAP_MEDIA_LEFT_OUT, "is read-only"},
    {"shareable", VMSNAP_MEDIA_REFUSED, "is shareable, so that other machines may write to it"},
    {"@device='lun'", VMSNAP_MEDIA_REFUSED, "is a SCSI passthrough, which bypasses QEMU's block layer"},
};

/* Returns: (transfer full): where the disk is, and all that its image rests on. */
static char **chain_parse(xmlXPathContext *context) {
    g_autoptr(GStrvBuilder) chain = g_strv_builder_new();
    xmlNode *disk = context->node;
    g_autoptr(xmlXPathObject) found = xmlXPathEvalExpression((const xmlChar *)". | .//backingStore[source]", context);
    int n_found = found && found->nodesetval ? found->nodesetval->nodeNr : 0;
    for (int i = 0; i < n_found; i++) {
        context->node = found->nodesetval->nodeTab[i];
        g_autofree char *source = vmsnap_xml_find_source(context);
        if (source)
            g_strv_builder_add(chain, source);
    }
    context->node = disk;
    return g_strv_builder_end(chain);
}

/* The controller of a SCSI disk is the one whose index is in the disk's address. */
static gboolean iothread_parse(xmlXPathContext *context) {
    return vmsnap_xml_is_true(context,
                              "driver/@iothread or driver/iothreads or (target/@bus='scsi' and "
                              "../controller[@type='scsi' and driver/@iothread]/@index = address/@controller)");
}

/* libvirt's own names for nodes are made of the number that it shows. */
static char *node_parse(xmlXPathContext *context) {
    g_autofree char *index = vmsnap_xml_find_text(context, "source/@index");
    return index ? g_strdup_printf("libvirt-%s-format", index) : NULL;
}

static VmsnapDomainDisk *disk_parse(xmlXPathContext *context) {
    VmsnapDomainDisk *disk = g_new0(VmsnapDomainDisk, 1);
    disk->base.name = vmsnap_xml_find_text(context, "target/@dev");
    disk->base.source = vmsnap_xml_find_source(context);
    disk->chain = chain_parse(context);
    disk->node = node_parse(context);
    disk->format = vmsnap_xml_find_text(context, "driver/@type");
    disk->has_iothread = iothread_parse(context);
    disk->keeps_track = g_strcmp0(disk->format, "qcow2") == 0;
    for (size_t i = 0; i < G_N_ELEMENTS(media_rules); i++) {
        if (!vmsnap_xml_is_true(context, media_rules[i].expression))
            continue;
        disk->base.media = media_rules[i].media;
        disk->base.reason = media_rules[i].reason;
        break;
    }
    return disk;
}

void vmsnap_domain_refuse_iothreads(VmsnapDomain *domain) {
    for (guint i = 0; i < domain->disks->len; i++) {
        VmsnapDomainDisk *disk = g_ptr_array_index(domain->disks, i);
        if (!disk->has_iothread || disk->base.media != VMSNAP_MEDIA_WRITABLE)
            continue;
        disk->base.media = VMSNAP_MEDIA_REFUSED;
        disk->base.reason = VMSNAP_DRIVE_IOTHREAD_REASON;
    }
}

static gboolean disks_parse(VmsnapDomain *domain, xmlXPathContext *context, GError **error) {
    g_autoptr(xmlXPathObject) found = xmlXPathEvalExpression((const xmlChar *)"/domain/devices/disk", context);
    int n_found = found && found->nodesetval ? found->nodesetval->nodeNr : 0;
    for (int i = 0; i < n_found; i++) {
        context->node = found->nodesetval->nodeTab[i];
        VmsnapDomainDisk *disk = disk_parse(context);
        g_ptr_array_add(domain->disks, disk);
        if (!vmsnap_drive_name_is_safe(disk->base.name)) {
            g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                        "failed to use domain '%s': its disk number %d has no usable target name", domain->name, i + 1);
            return FALSE;
        }
    }
    context->node = NULL;
    return TRUE;
}

static void files_parse(VmsnapDomain *domain, xmlXPathContext *context) {
    static const struct {
        const char *name;
        const char *expression;
    } files[] = {
        /* A path, or what a disk has, too: <nvram type='file'><source file='...'/></nvram>. */
        {"nvram.fd", "/domain/os/nvram[not(source)] | /domain/os/nvram/source/@file | /domain/os/nvram/source/@dev | "
                     "/domain/os/nvram/source/@name"},
        {"loader", "/domain/os/loader"},
        {"kernel", "/domain/os/kernel"},
        {"initrd", "/domain/os/initrd"},
        {"dtb", "/domain/os/dtb"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        char *path = vmsnap_xml_find_text(context, files[i].expression);
        if (!path)
            continue;
        VmsnapDomainFile *file = g_new0(VmsnapDomainFile, 1);
        file->name = files[i].name;
        file->path = path;
        g_ptr_array_add(domain->files, file);
    }
}

/* The DAC label reads "+64055:+107": the plus says that these are numbers. */
static gboolean owner_parse(const char *label, uid_t *ret_uid, gid_t *ret_gid) {
    g_auto(GStrv) parts = g_strsplit(label, ":", 2);
    guint64 uid, gid;
    if (g_strv_length(parts) != 2 || parts[0][0] != '+' || parts[1][0] != '+' ||
        !g_ascii_string_to_unsigned(parts[0] + 1, 10, 0, G_MAXUINT32 - 1, &uid, NULL) ||
        !g_ascii_string_to_unsigned(parts[1] + 1, 10, 0, G_MAXUINT32 - 1, &gid, NULL))
        return FALSE;
    *ret_uid = (uid_t)uid;
    *ret_gid = (gid_t)gid;
    return TRUE;
}

VmsnapDomain *vmsnap_domain_parse(const char *xml, GError **error) {
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = document ? xmlXPathNewContext(document) : NULL;
    g_autoptr(VmsnapDomain) domain = g_new0(VmsnapDomain, 1);
    domain->disks = g_ptr_array_new_with_free_func(domain_disk_free);
    domain->files = g_ptr_array_new_with_free_func(domain_file_free);
    if (context) {
        domain->name = vmsnap_xml_find_text(context, "/domain/name");
        domain->uuid = vmsnap_xml_find_text(context, "/domain/uuid");
    }
    if (!domain->name || !domain->uuid) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to read the domain's XML: it has no %s",
                    domain->name ? "uuid" : "name");
        return NULL;
    }
    g_autofree char *label = vmsnap_xml_find_text(context, "/domain/seclabel[@model='dac']/label");
    domain->has_owner = label && owner_parse(label, &domain->uid, &domain->gid);
    files_parse(domain, context);
    return disks_parse(domain, context, error) ? g_steal_pointer(&domain) : NULL;
}

GPtrArray *vmsnap_domain_select(const VmsnapDomain *domain, const char *const *only, const char *const *exclude,
                                VmsnapSnapshot *ret_left_out, GError **error) {
    g_autofree char *owner = g_strdup_printf("domain '%s'", domain->name);
    return vmsnap_drives_select(domain->disks, owner, only, exclude, ret_left_out, error);
}

char *vmsnap_domain_name_scratch(const char *target) {
    return g_strconcat(target, ".qcow2", NULL);
}

char *vmsnap_domain_name_bitmap(const char *target) {
    return g_strconcat("backup-", target, NULL);
}

static void append_backup_disk(GString *xml, const VmsnapDisk *disk, const char *scratch_dir) {
    g_autofree char *scratch_name = vmsnap_domain_name_scratch(disk->name);
    g_autofree char *scratch = g_build_filename(scratch_dir, scratch_name, NULL);
    g_autofree char *bitmap = vmsnap_domain_name_bitmap(disk->name);
    g_string_append(xml, "    <disk backup='yes' type='file'");
    vmsnap_xml_append_attribute(xml, "name", disk->name);
    vmsnap_xml_append_attribute(xml, "exportname", disk->name);
    if (disk->since) {
        vmsnap_xml_append_attribute(xml, "backupmode", "incremental");
        vmsnap_xml_append_attribute(xml, "incremental", disk->since);
        vmsnap_xml_append_attribute(xml, "exportbitmap", bitmap);
    }
    g_string_append(xml, ">\n      <driver type='qcow2'/>\n      <scratch");
    vmsnap_xml_append_attribute(xml, "file", scratch);
    g_string_append(xml, "/>\n    </disk>\n");
}

static void append_left_out_disk(GString *xml, const VmsnapDomainDisk *disk) {
    g_string_append(xml, "    <disk backup='no'");
    vmsnap_xml_append_attribute(xml, "name", disk->base.name);
    g_string_append(xml, "/>\n");
}

static gboolean disk_has_name(gconstpointer disk, gconstpointer name) {
    return g_str_equal(((const VmsnapDisk *)disk)->name, name);
}

char *vmsnap_domain_build_backup_xml(const VmsnapDomain *domain, const GPtrArray *disks, const char *socket,
                                     const char *scratch_dir) {
    GString *xml = g_string_new("<domainbackup mode='pull'>\n  <server transport='unix'");
    vmsnap_xml_append_attribute(xml, "socket", socket);
    g_string_append(xml, "/>\n  <disks>\n");
    for (guint i = 0; i < domain->disks->len; i++) {
        const VmsnapDomainDisk *disk = g_ptr_array_index(domain->disks, i);
        guint place;
        if (g_ptr_array_find_with_equal_func((GPtrArray *)disks, disk->base.name, disk_has_name, &place))
            append_backup_disk(xml, g_ptr_array_index(disks, place), scratch_dir);
        else
            append_left_out_disk(xml, disk);
    }
    g_string_append(xml, "  </disks>\n</domainbackup>\n");
    return g_string_free(xml, FALSE);
}

char *vmsnap_domain_parse_backup_socket(const char *xml) {
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = document ? xmlXPathNewContext(document) : NULL;
    return context ? vmsnap_xml_find_text(context, "/domainbackup/server/@socket") : NULL;
}

char *vmsnap_domain_parse_scratch_device(const char *xml, const char *target) {
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = document ? xmlXPathNewContext(document) : NULL;
    g_autoptr(xmlXPathObject) found =
        context ? xmlXPathEvalExpression((const xmlChar *)"/domainbackup/disks/disk[@index]", context) : NULL;
    int n_found = found && found->nodesetval ? found->nodesetval->nodeNr : 0;
    for (int i = 0; i < n_found; i++) {
        context->node = found->nodesetval->nodeTab[i];
        g_autofree char *name = vmsnap_xml_find_text(context, "@name");
        g_autofree char *number = vmsnap_xml_find_text(context, "@index");
        if (g_strcmp0(name, target) == 0)
            return g_strdup_printf("%s[%s]", name, number);
    }
    return NULL;
}

gboolean vmsnap_domain_parse_agent_is_connected(const char *xml) {
    g_autoptr(xmlDoc) document = vmsnap_xml_parse(xml);
    g_autoptr(xmlXPathContext) context = document ? xmlXPathNewContext(document) : NULL;
    return context && vmsnap_xml_is_true(context, "/domain/devices/channel/target[@name='org.qemu.guest_agent.0' and "
                                                  "@state='connected']");
}
