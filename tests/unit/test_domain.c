/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libvirt's XML: what is read from it, which disks are chosen, what is written, and what hostile XML cannot do. */
#include "backend/domain.h"

#include "memory_backend.h"
#include "vmsnap/error.h"

#include <libxml/parser.h>
#include <libxml/xpath.h>
#include <string.h>
#include <unistd.h>

/* The least that a domain has, around @inner. */
#define DOMAIN(inner)                                                                                                  \
    "<domain type='kvm' id='3'><name>vm1</name><uuid>6f1c2d3e-0000-4000-8000-00000000000a</uuid>" inner "</domain>"
#define DISKS(disks) DOMAIN("<devices><emulator>/usr/bin/qemu</emulator>" disks "</devices>")
#define FILE_DISK(target)                                                                                              \
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/" target                  \
    ".qcow2' index='1'/><target dev='" target "' bus='virtio'/></disk>"

static VmsnapDomain *parse(const char *xml) {
    g_autoptr(GError) error = NULL;
    VmsnapDomain *domain = vmsnap_domain_parse(xml, &error);
    g_assert_no_error(error);
    g_assert_nonnull(domain);
    return domain;
}

static const VmsnapDomainDisk *disk_at(const VmsnapDomain *domain, guint i) {
    g_assert_cmpuint(domain->disks->len, >, i);
    return g_ptr_array_index(domain->disks, i);
}

/* An error message is one line that has all of @parts in it. */
static void check_error(const GError *error, const char *const *parts) {
    g_assert_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED);
    g_assert_null(strchr(error->message, '\n'));
    for (; *parts; parts++)
        if (!strstr(error->message, *parts))
            g_error("'%s' does not say '%s'", error->message, *parts);
}

#define CHECK_ERROR(error, ...) check_error(error, (const char *const[]){__VA_ARGS__, NULL})

static void test_a_domain_has_name_uuid_and_disks(void) {
    g_autoptr(VmsnapDomain) domain = parse(DISKS(FILE_DISK("vda") FILE_DISK("vdb")));
    g_assert_cmpstr(domain->name, ==, "vm1");
    g_assert_cmpstr(domain->uuid, ==, "6f1c2d3e-0000-4000-8000-00000000000a");
    g_assert_cmpuint(domain->disks->len, ==, 2);
    g_assert_cmpstr(disk_at(domain, 0)->base.name, ==, "vda");
    g_assert_cmpstr(disk_at(domain, 0)->base.source, ==, "/images/vda.qcow2");
    g_assert_cmpstr(disk_at(domain, 1)->base.name, ==, "vdb");
    g_assert_cmpint(disk_at(domain, 1)->base.media, ==, VMSNAP_MEDIA_WRITABLE);
    g_assert_null(disk_at(domain, 1)->base.reason);
}

static void test_a_domain_may_have_no_disks(void) {
    g_autoptr(VmsnapDomain) domain = parse(DOMAIN(""));
    g_assert_cmpuint(domain->disks->len, ==, 0);
    g_assert_cmpuint(domain->files->len, ==, 0);
    g_assert_false(domain->has_owner);
}

/* Each kind of drive: what is to be done with it, and what people read as its source. */
static void test_each_kind_of_drive_is_judged(void) {
    static const struct {
        const char *xml;
        VmsnapMedia media;
        const char *source;
    } cases[] = {
        {"<disk type='file' device='disk'><source file='/a'/><target dev='x'/></disk>", VMSNAP_MEDIA_WRITABLE, "/a"},
        {"<disk type='file'><source file='/a'/><target dev='x'/></disk>", VMSNAP_MEDIA_WRITABLE, "/a"},
        {"<disk type='block' device='disk'><source dev='/dev/vg/lv'/><target dev='x'/></disk>", VMSNAP_MEDIA_WRITABLE,
         "/dev/vg/lv"},
        {"<disk type='dir'><source dir='/srv/fat'/><target dev='x'/></disk>", VMSNAP_MEDIA_WRITABLE, "/srv/fat"},
        {"<disk type='volume'><source pool='default' volume='vm1.img'/><target dev='x'/></disk>", VMSNAP_MEDIA_WRITABLE,
         "default/vm1.img"},
        {"<disk type='network'><source protocol='rbd' name='pool/image'><host name='ceph'/></source>"
         "<target dev='x'/></disk>",
         VMSNAP_MEDIA_WRITABLE, "rbd:pool/image"},
        {"<disk type='network'><source protocol='nbd'/><target dev='x'/></disk>", VMSNAP_MEDIA_WRITABLE, "nbd:"},
        {"<disk type='nvme'><source type='pci' managed='yes' namespace='1'/><target dev='x'/></disk>",
         VMSNAP_MEDIA_WRITABLE, NULL},
        {"<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='x'/><readonly/></disk>",
         VMSNAP_MEDIA_LEFT_OUT, "/a.iso"},
        {"<disk type='file' device='cdrom'><target dev='x'/></disk>", VMSNAP_MEDIA_LEFT_OUT, NULL},
        {"<disk type='file' device='floppy'><source file='/a.img'/><target dev='x'/></disk>", VMSNAP_MEDIA_LEFT_OUT,
         "/a.img"},
        {"<disk type='file' device='disk'><target dev='x'/></disk>", VMSNAP_MEDIA_LEFT_OUT, NULL},
        {"<disk type='file'><source file='/a'/><target dev='x'/><readonly/></disk>", VMSNAP_MEDIA_LEFT_OUT, "/a"},
        {"<disk type='file'><source file='/a'/><target dev='x'/><readonly/><shareable/></disk>", VMSNAP_MEDIA_LEFT_OUT,
         "/a"},
        {"<disk type='file'><source file='/a'/><target dev='x'/><shareable/></disk>", VMSNAP_MEDIA_REFUSED, "/a"},
        {"<disk type='block' device='lun'><source dev='/dev/sdb'/><target dev='x'/></disk>", VMSNAP_MEDIA_REFUSED,
         "/dev/sdb"},
        {"<disk type='vhostuser'><source type='unix' path='/run/spdk.sock'/><target dev='x'/></disk>",
         VMSNAP_MEDIA_REFUSED, NULL},
        {"<disk type='vhostvdpa'><source dev='/dev/vhost-vdpa-0'/><target dev='x'/></disk>", VMSNAP_MEDIA_REFUSED,
         "/dev/vhost-vdpa-0"},
        /* What stands deeper is not of this disk. */
        {"<disk type='file'><source file='/a'/><backingStore type='file'><source file='/base'/><readonly/>"
         "</backingStore><mirror><source file='/copy'/></mirror><target dev='x'/></disk>",
         VMSNAP_MEDIA_WRITABLE, "/a"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *xml = g_strdup_printf(DISKS("%s"), cases[i].xml);
        g_autoptr(VmsnapDomain) domain = parse(xml);
        const VmsnapDomainDisk *disk = disk_at(domain, 0);
        g_test_message("%s", cases[i].xml);
        g_assert_cmpstr(disk->base.name, ==, "x");
        g_assert_cmpint(disk->base.media, ==, cases[i].media);
        g_assert_cmpstr(disk->base.source, ==, cases[i].source);
        g_assert_cmpint(disk->base.reason == NULL, ==, cases[i].media == VMSNAP_MEDIA_WRITABLE);
    }
}

/* By itself, or by its controller: only that one whose index is in its address. */
static void test_disks_of_iothreads_can_be_refused(void) {
    static const struct {
        const char *driver;
        const char *bus;
        gboolean refused;
    } cases[] = {
        {"<driver name='qemu'/>", "virtio", FALSE},
        {"<driver name='qemu' iothread='2'/>", "virtio", TRUE},
        {"<driver><iothreads><iothread id='1'/></iothreads></driver>", "virtio", TRUE},
        {"<address type='drive' controller='1' bus='0' target='0' unit='0'/>", "scsi", TRUE},
        {"<address type='drive' controller='0' bus='0' target='0' unit='0'/>", "scsi", FALSE},
        {"<address type='drive' controller='1' bus='0' target='0' unit='0'/>", "sata", FALSE},
        {"<driver iothread='1'/><readonly/>", "virtio", FALSE},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *xml = g_strdup_printf(
            DISKS("<controller type='scsi' index='0'/><controller type='scsi' index='1'><driver iothread='1'/>"
                  "</controller><disk type='file'><source file='/a'/><target dev='x' bus='%s'/>%s</disk>"),
            cases[i].bus, cases[i].driver);
        g_autoptr(VmsnapDomain) domain = parse(xml);
        VmsnapMedia before = disk_at(domain, 0)->base.media;
        vmsnap_domain_refuse_iothreads(domain);
        g_assert_cmpint(disk_at(domain, 0)->base.media, ==, cases[i].refused ? VMSNAP_MEDIA_REFUSED : before);
    }
}

static void test_escaped_text_is_read_as_it_is_meant(void) {
    g_autoptr(VmsnapDomain) domain =
        parse("<domain><name>a &amp; b &lt;ü&gt;</name><uuid>u</uuid><devices><disk type='file'>"
              "<source file='/im &quot;ages&apos;/&#x41;&#10;.qcow2'/><target dev='vda'/></disk></devices></domain>");
    g_assert_cmpstr(domain->name, ==, "a & b <ü>");
    g_assert_cmpstr(disk_at(domain, 0)->base.source, ==, "/im \"ages'/A\n.qcow2");
}

static void test_the_owner_is_the_dac_label(void) {
    static const struct {
        const char *labels;
        gboolean has_owner;
        uid_t uid;
        gid_t gid;
    } cases[] = {
        {"<seclabel model='dac'><label>+64055:+107</label></seclabel>", TRUE, 64055, 107},
        {"<seclabel model='apparmor'><label>libvirt-6f1c</label></seclabel>"
         "<seclabel model='dac'><label>+0:+0</label></seclabel>",
         TRUE, 0, 0},
        {"<seclabel model='dac'><label>libvirt-qemu:kvm</label></seclabel>", FALSE, 0, 0},
        {"<seclabel model='dac'/>", FALSE, 0, 0},
        {"<seclabel model='selinux'><label>+1:+2</label></seclabel>", FALSE, 0, 0},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *xml = g_strdup_printf(DOMAIN("%s"), cases[i].labels);
        g_autoptr(VmsnapDomain) domain = parse(xml);
        g_assert_cmpint(domain->has_owner, ==, cases[i].has_owner);
        if (cases[i].has_owner)
            g_assert_true(domain->uid == cases[i].uid && domain->gid == cases[i].gid);
    }
}

static void check_file(const VmsnapDomain *domain, guint i, const char *name, const char *path) {
    const VmsnapDomainFile *file = g_ptr_array_index(domain->files, i);
    g_assert_cmpstr(file->name, ==, name);
    g_assert_cmpstr(file->path, ==, path);
}

static void test_boot_files_are_found(void) {
    g_autoptr(VmsnapDomain) domain =
        parse(DOMAIN("<os><type>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF.fd</loader>"
                     "<nvram template='/t'>/var/nvram/vm1 &amp; co.fd</nvram><kernel>/boot/vmlinuz</kernel>"
                     "<initrd>/boot/initrd</initrd><cmdline>quiet</cmdline><dtb>/boot/a.dtb</dtb></os>"));
    g_assert_cmpuint(domain->files->len, ==, 5);
    check_file(domain, 0, "nvram.fd", "/var/nvram/vm1 & co.fd");
    check_file(domain, 1, "loader", "/usr/share/OVMF.fd");
    check_file(domain, 2, "kernel", "/boot/vmlinuz");
    check_file(domain, 3, "initrd", "/boot/initrd");
    check_file(domain, 4, "dtb", "/boot/a.dtb");
}

static void test_nvram_may_be_described_as_a_disk_is(void) {
    g_autoptr(VmsnapDomain) domain =
        parse(DOMAIN("<os><nvram type='file'>\n  <source file='/var/nvram/vm1.fd'/>\n</nvram></os>"));
    g_assert_cmpuint(domain->files->len, ==, 1);
    check_file(domain, 0, "nvram.fd", "/var/nvram/vm1.fd");
}

static void check_parse_error(const char *xml, const char *said) {
    g_autoptr(GError) error = NULL;
    g_assert_null(vmsnap_domain_parse(xml, &error));
    CHECK_ERROR(error, said);
}

static void test_what_is_no_domain_is_refused(void) {
    static const char *const no_domains[] = {
        "",
        " ",
        "no XML",
        "<domain>",
        "<domain><name>vm1</name></domain",
        "<domain/>",
        "<domain><name/><uuid/></domain>",
        "<other><name>vm1</name><uuid>u</uuid></other>",
        "<domain xmlns='urn:other'><name>vm1</name><uuid>u</uuid></domain>",
        "\xff\xfe\x00\x00",
        "<?xml version='1.0' encoding='no-such-encoding'?><domain><name>vm1</name><uuid>u</uuid></domain>",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(no_domains); i++)
        check_parse_error(no_domains[i], "name");
    check_parse_error("<domain><name>vm1</name></domain>", "uuid");
}

static void test_targets_that_are_no_file_names_are_refused(void) {
    static const char *const targets[] = {"",          "dev=''",  "dev='/'",      "dev='../x'",
                                          "dev='a/b'", "dev='.'", "dev='.vmsnap'"};
    for (size_t i = 0; i < G_N_ELEMENTS(targets); i++) {
        g_autofree char *xml = g_strdup_printf(
            DISKS(FILE_DISK("vda") "<disk type='file'><source file='/a'/><target %s/></disk>"), targets[i]);
        check_parse_error(xml, "disk number 2");
    }
    check_parse_error(DISKS("<disk type='file'><source file='/a'/></disk>"), "disk number 1");
}

/* Returns: @depth elements in each other. */
static char *nested(unsigned depth) {
    GString *xml = g_string_new(NULL);
    for (unsigned i = 0; i < depth; i++)
        g_string_append(xml, "<a>");
    for (unsigned i = 0; i < depth; i++)
        g_string_append(xml, "</a>");
    return g_string_free(xml, FALSE);
}

static void test_deep_nesting_ends_in_an_error_or_a_domain(void) {
    g_autofree char *inner = nested(100000);
    g_autofree char *xml = g_strdup_printf(DOMAIN("%s"), inner);
    g_autoptr(GError) error = NULL;
    g_autoptr(VmsnapDomain) domain = vmsnap_domain_parse(xml, &error);
    g_assert_true((domain != NULL) != (error != NULL));
}

static void test_a_huge_domain_is_read_in_no_time(void) {
    GString *disks = g_string_new(NULL);
    for (int i = 0; i < 2000; i++)
        g_string_append_printf(disks, "<disk type='file'><source file='/%d'/><target dev='d%d'/></disk>", i, i);
    g_autofree char *filling = g_strnfill(8 << 20, 'x');
    g_autofree char *xml =
        g_strdup_printf(DOMAIN("<description>%s</description><devices>%s</devices>"), filling, disks->str);
    gint64 start_us = g_get_monotonic_time();
    g_autoptr(VmsnapDomain) domain = parse(xml);
    g_assert_cmpuint(domain->disks->len, ==, 2000);
    g_assert_cmpstr(disk_at(domain, 1999)->base.name, ==, "d1999");
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 20 * G_USEC_PER_SEC);
    g_string_free(disks, TRUE);
}

static void test_no_file_is_read_through_an_entity(void) {
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("vmsnap-XXXXXX", &path, NULL);
    g_assert_cmpint(write(fd, "SECRET", 6), ==, 6);
    (void)close(fd);
    g_autofree char *xml = g_strdup_printf("<!DOCTYPE domain [<!ENTITY secret SYSTEM 'file://%s'>]>"
                                           "<domain><name>vm&secret;</name><uuid>u&secret;</uuid></domain>",
                                           path);
    g_autoptr(VmsnapDomain) domain = vmsnap_domain_parse(xml, NULL);
    if (domain) {
        g_assert_null(strstr(domain->name, "SECRET"));
        g_assert_null(strstr(domain->uuid, "SECRET"));
    }
    g_autofree char *dtd = g_strdup_printf("<!DOCTYPE domain [<!ENTITY %% outer SYSTEM 'file://%s'>%%outer;]>"
                                           "<domain><name>vm</name><uuid>u</uuid></domain>",
                                           path);
    vmsnap_domain_free(vmsnap_domain_parse(dtd, NULL));
    (void)unlink(path);
}

/* Entities that stand for ten of the next make a few lines gigabytes. */
static void test_a_billion_laughs_take_no_time(void) {
    GString *xml = g_string_new("<!DOCTYPE domain [<!ENTITY l0 'lolololololololol'>");
    for (int i = 1; i < 12; i++) {
        g_string_append_printf(xml, "<!ENTITY l%d '", i);
        for (int n = 0; n < 10; n++)
            g_string_append_printf(xml, "&l%d;", i - 1);
        g_string_append(xml, "'>");
    }
    g_string_append(xml, "]><domain><name>&l11;</name><uuid>&l11;</uuid></domain>");
    gint64 start_us = g_get_monotonic_time();
    g_autoptr(VmsnapDomain) domain = vmsnap_domain_parse(xml->str, NULL);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 10 * G_USEC_PER_SEC);
    g_assert_true(!domain || strlen(domain->name) < 100 << 20);
    g_string_free(xml, TRUE);
}

static void test_an_entity_of_itself_ends(void) {
    g_autoptr(VmsnapDomain) domain = vmsnap_domain_parse("<!DOCTYPE domain [<!ENTITY a '&b;'><!ENTITY b '&a;'>]>"
                                                         "<domain><name>vm&a;</name><uuid>u&b;</uuid></domain>",
                                                         NULL);
    g_assert_true(!domain || strlen(domain->name) < 1 << 20);
}

/* What a choice came to: the disks, or the error. */
typedef struct {
    VmsnapDomain *domain;
    VmsnapSnapshot *left_out;
    GPtrArray *selected;
    GError *error;
} Choice;

static Choice choose(const char *xml, const char *only, const char *exclude) {
    g_auto(GStrv) only_names = only ? g_strsplit(only, ":", -1) : NULL;
    g_auto(GStrv) exclude_names = exclude ? g_strsplit(exclude, ":", -1) : NULL;
    Choice choice = {.domain = parse(xml), .left_out = memory_snapshot_new(NULL)};
    choice.selected = vmsnap_domain_select(choice.domain, (const char *const *)only_names,
                                           (const char *const *)exclude_names, choice.left_out, &choice.error);
    g_assert_true((choice.selected != NULL) != (choice.error != NULL));
    return choice;
}

static void choice_clear(Choice *choice) {
    memory_snapshot_end(choice->left_out);
    vmsnap_snapshot_free(choice->left_out);
    g_clear_pointer(&choice->selected, g_ptr_array_unref);
    vmsnap_domain_free(choice->domain);
    g_clear_error(&choice->error);
}

/* Returns: (transfer full): "vda vdb", and what was left out as "sda: reason, ...". */
static char *choice_format(const Choice *choice) {
    GString *text = g_string_new(NULL);
    g_assert_no_error(choice->error);
    for (guint i = 0; i < choice->selected->len; i++)
        g_string_append_printf(text, "%s ",
                               ((const VmsnapDomainDisk *)g_ptr_array_index(choice->selected, i))->base.name);
    for (guint i = 0; i < choice->left_out->left_out->len; i++) {
        const VmsnapLeftOut *left_out = g_ptr_array_index(choice->left_out->left_out, i);
        g_string_append_printf(text, "(%s %s)", left_out->name, left_out->reason);
    }
    return g_string_free(text, FALSE);
}

#define CDROM "<disk type='file' device='cdrom'><source file='/a.iso'/><target dev='sda'/></disk>"
#define SHARED "<disk type='file'><source file='/s'/><target dev='vdx'/><shareable/></disk>"

static void test_disks_are_chosen_as_asked(void) {
    static const struct {
        const char *xml;
        const char *only;
        const char *exclude;
        const char *expected;
    } cases[] = {
        {DISKS(FILE_DISK("vda") CDROM FILE_DISK("vdb")), NULL, NULL, "vda vdb (sda is a CD-ROM)"},
        {DISKS(FILE_DISK("vda") CDROM FILE_DISK("vdb")), "vdb", NULL,
         "vdb (vda was not asked for)(sda was not asked for)"},
        {DISKS(FILE_DISK("vda") CDROM FILE_DISK("vdb")), NULL, "vda", "vdb (vda was excluded)(sda is a CD-ROM)"},
        {DISKS(FILE_DISK("vda") FILE_DISK("vdb")), "vda:vdb", "vdb", "vda (vdb was excluded)"},
        {DISKS(FILE_DISK("vda") FILE_DISK("vdb")), "vdb:vda:vdb", NULL, "vda vdb "},
        {DISKS(FILE_DISK("vda") SHARED), NULL, "vdx", "vda (vdx was excluded)"},
        {DISKS(FILE_DISK("vda") SHARED), "vda", NULL, "vda (vdx was not asked for)"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Choice choice = choose(cases[i].xml, cases[i].only, cases[i].exclude);
        g_autofree char *text = choice_format(&choice);
        g_assert_cmpstr(text, ==, cases[i].expected);
        choice_clear(&choice);
    }
}

static void test_a_disk_that_cannot_be_backed_up_is_named_with_the_remedy(void) {
    static const char *const refused[] = {
        SHARED,
        "<disk type='block' device='lun'><source dev='/dev/sdb'/><target dev='vdx'/></disk>",
        "<disk type='vhostuser'><source type='unix' path='/run/spdk.sock'/><target dev='vdx'/></disk>",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        g_autofree char *xml = g_strdup_printf(DISKS(FILE_DISK("vda") "%s"), refused[i]);
        Choice all = choose(xml, NULL, NULL), named = choose(xml, "vdx", NULL);
        CHECK_ERROR(all.error, "'vdx'", "'vm1'", "exclude=vdx");
        CHECK_ERROR(named.error, "'vdx'", "'vm1'");
        choice_clear(&all);
        choice_clear(&named);
    }
}

static void test_asking_for_a_cdrom_is_refused(void) {
    Choice choice = choose(DISKS(FILE_DISK("vda") CDROM), "sda", NULL);
    CHECK_ERROR(choice.error, "'sda'", "CD-ROM");
    choice_clear(&choice);
}

static void test_names_that_are_no_disks_are_refused(void) {
    Choice only = choose(DISKS(FILE_DISK("vda") FILE_DISK("vdb")), "vda:vdz", NULL);
    Choice exclude = choose(DISKS(FILE_DISK("vda") FILE_DISK("vdb")), NULL, "vdy");
    CHECK_ERROR(only.error, "'vdz'", "disks=", "'vm1'", "vda, vdb");
    CHECK_ERROR(exclude.error, "'vdy'", "exclude=", "'vm1'", "vda, vdb");
    choice_clear(&only);
    choice_clear(&exclude);
}

static void test_no_disk_left_is_an_error(void) {
    static const char *const excludes[] = {NULL, "vda"};
    static const char *const xmls[] = {DISKS(CDROM), DISKS(FILE_DISK("vda") CDROM)};
    for (size_t i = 0; i < G_N_ELEMENTS(xmls); i++) {
        Choice choice = choose(xmls[i], NULL, excludes[i]);
        CHECK_ERROR(choice.error, "'vm1'", "no disk");
        choice_clear(&choice);
    }
    Choice nothing = choose(DOMAIN(""), NULL, NULL);
    CHECK_ERROR(nothing.error, "'vm1'", "no disk");
    choice_clear(&nothing);
}

/* Returns: (transfer full): what @expression gives as a string in @xml, which must be well-formed. */
static char *evaluate(const char *xml, const char *expression) {
    xmlDoc *document = xmlReadMemory(xml, (int)strlen(xml), "test", NULL, XML_PARSE_NONET);
    g_assert_nonnull(document);
    xmlXPathContext *context = xmlXPathNewContext(document);
    xmlXPathObject *object = xmlXPathEvalExpression((const xmlChar *)expression, context);
    g_assert_nonnull(object);
    xmlChar *value = xmlXPathCastToString(object);
    char *copy = g_strdup((const char *)value);
    xmlFree(value);
    xmlXPathFreeObject(object);
    xmlXPathFreeContext(context);
    xmlFreeDoc(document);
    return copy;
}

#define CHECK_XPATH(xml, expression, expected)                                                                         \
    do {                                                                                                               \
        g_autofree char *value = evaluate(xml, expression);                                                            \
        g_assert_cmpstr(value, ==, expected);                                                                          \
    } while (0)

static void disk_free(gpointer data) {
    VmsnapDisk *disk = data;
    g_free(disk->name);
    g_free(disk->since);
    g_free(disk);
}

/* Returns: (transfer full): the disks of a snapshot of what was chosen. */
static GPtrArray *disks_of(const Choice *choice) {
    GPtrArray *disks = g_ptr_array_new_with_free_func(disk_free);
    for (guint i = 0; i < choice->selected->len; i++) {
        const VmsnapDomainDisk *source = g_ptr_array_index(choice->selected, i);
        VmsnapDisk *disk = g_new0(VmsnapDisk, 1);
        disk->name = g_strdup(source->base.name);
        g_ptr_array_add(disks, disk);
    }
    return disks;
}

static void test_the_backup_names_every_disk(void) {
    Choice choice = choose(DISKS(FILE_DISK("vda") CDROM FILE_DISK("vdb") FILE_DISK("vdc")), NULL, "vdb");
    g_autoptr(GPtrArray) disks = disks_of(&choice);
    ((VmsnapDisk *)g_ptr_array_index(disks, 1))->since = g_strdup("c<1>");
    g_autofree char *xml = vmsnap_domain_build_backup_xml(choice.domain, disks, "/run/nbd.sock", "/scratch");
    CHECK_XPATH(xml, "/domainbackup/@mode", "pull");
    CHECK_XPATH(xml, "/domainbackup/server/@transport", "unix");
    CHECK_XPATH(xml, "/domainbackup/server/@socket", "/run/nbd.sock");
    CHECK_XPATH(xml, "count(/domainbackup/disks/disk)", "4");
    CHECK_XPATH(xml, "count(/domainbackup/disks/disk[@backup='no'])", "2");
    CHECK_XPATH(xml, "count(/domainbackup/disks/disk[@backup='no']/*)", "0");
    CHECK_XPATH(xml, "//disk[@name='vda']/@backup", "yes");
    CHECK_XPATH(xml, "//disk[@name='vda']/@exportname", "vda");
    CHECK_XPATH(xml, "//disk[@name='vda']/driver/@type", "qcow2");
    CHECK_XPATH(xml, "//disk[@name='vdc']/scratch/@file", "/scratch/vdc.qcow2");
    CHECK_XPATH(xml, "count(//disk[@name='vda']/@incremental)", "0");
    CHECK_XPATH(xml, "//disk[@name='vdc']/@incremental", "c<1>");
    CHECK_XPATH(xml, "//disk[@name='vdc']/@backupmode", "incremental");
    CHECK_XPATH(xml, "//disk[@name='vdc']/@exportbitmap", "backup-vdc");
    CHECK_XPATH(xml, "//disk[@name='vdb']/@backup", "no");
    CHECK_XPATH(xml, "//disk[@name='sda']/@backup", "no");
    choice_clear(&choice);
}

/* Attribute values come back as they were, white space too, which XML would turn into blanks. */
static void test_the_backup_keeps_odd_names_and_paths(void) {
    static const char *const odd[] = {
        "a b", "a&b", "a<b>", "a'b",  "a\"b", "a'><evil x='", "a&amp;b",
        "]]>", "--",  "ü€",   "%s%n", "a\tb", "a\nb",         "a\rb",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(odd); i++) {
        g_autofree char *target = g_markup_escape_text(odd[i], -1);
        g_autoptr(GString) escaped = g_string_new(target);
        (void)g_string_replace(escaped, "\t", "&#9;", 0);
        (void)g_string_replace(escaped, "\n", "&#10;", 0);
        (void)g_string_replace(escaped, "\r", "&#13;", 0);
        g_autofree char *domain_xml =
            g_strdup_printf(DISKS("<disk type='file'><source file='/a'/><target dev=\"%s\"/></disk>"), escaped->str);
        g_autofree char *socket = g_strconcat("/run/", odd[i], "/nbd.sock", NULL);
        g_autofree char *scratch = g_strconcat("/scratch/", odd[i], NULL);
        Choice choice = choose(domain_xml, NULL, NULL);
        g_autoptr(GPtrArray) disks = disks_of(&choice);
        g_autofree char *xml = vmsnap_domain_build_backup_xml(choice.domain, disks, socket, scratch);
        g_autofree char *scratch_name = vmsnap_domain_name_scratch(odd[i]);
        g_autofree char *scratch_path = g_build_filename(scratch, scratch_name, NULL);
        g_autofree char *parsed_socket = vmsnap_domain_parse_backup_socket(xml);
        CHECK_XPATH(xml, "count(//disk)", "1");
        CHECK_XPATH(xml, "//disk/@name", odd[i]);
        CHECK_XPATH(xml, "//disk/@exportname", odd[i]);
        CHECK_XPATH(xml, "//scratch/@file", scratch_path);
        g_assert_cmpstr(parsed_socket, ==, socket);
        choice_clear(&choice);
    }
}

static void test_the_socket_of_a_job_is_read(void) {
    g_autofree char *socket = vmsnap_domain_parse_backup_socket(
        "<domainbackup mode='pull' id='1'><server transport='unix' socket='/run/a &amp; b/nbd.sock'/></domainbackup>");
    g_assert_cmpstr(socket, ==, "/run/a & b/nbd.sock");
    g_assert_null(vmsnap_domain_parse_backup_socket(
        "<domainbackup mode='pull'><server transport='tcp' name='localhost' port='10809'/></domainbackup>"));
    g_assert_null(vmsnap_domain_parse_backup_socket("<domainbackup mode='push'><disks/></domainbackup>"));
    g_assert_null(vmsnap_domain_parse_backup_socket("no XML"));
    g_assert_null(vmsnap_domain_parse_backup_socket(""));
}

#define BACKUP(disks)                                                                                                  \
    "<domainbackup mode='pull' id='1'><server transport='unix' socket='/run/nbd.sock'/><disks>" disks                  \
    "</disks></domainbackup>"

static void check_scratch_device(const char *xml, const char *target, const char *expected) {
    g_autofree char *device = vmsnap_domain_parse_scratch_device(xml, target);
    g_assert_cmpstr(device, ==, expected);
}

/* libvirt numbers the scratch files of a job, as it does the images of a disk. */
static void test_the_scratch_file_of_a_job_has_a_number(void) {
    const char *xml = BACKUP("<disk name='vda' backup='yes' type='file' index='7'><driver type='qcow2'/>"
                             "<scratch file='/scratch/vda.qcow2'/></disk>"
                             "<disk name='vdb' backup='no' index='8'/>"
                             "<disk name='vdc' backup='yes' type='file' exportname='vda' index='12'/>"
                             "<disk name='vdd' backup='yes' type='file'/>");
    check_scratch_device(xml, "vda", "vda[7]");
    check_scratch_device(xml, "vdc", "vdc[12]");
    check_scratch_device(xml, "vdd", NULL);
    check_scratch_device(xml, "vde", NULL);
    check_scratch_device(xml, "vd", NULL);
    check_scratch_device(xml, "VDA", NULL);
    check_scratch_device(xml, "", NULL);
}

/* One without a number before, and another place in the XML: neither stands for the disk. */
static void test_only_the_disk_of_that_name_has_its_scratch_file(void) {
    check_scratch_device(BACKUP("<disk name='vda'/><disk name='vda' index='3'/>"), "vda", "vda[3]");
    check_scratch_device(BACKUP("<disk index='3'/>"), "vda", NULL);
    check_scratch_device(BACKUP("<disk index='3'><name>vda</name></disk>"), "vda", NULL);
    check_scratch_device(BACKUP("<disk name='vda'><scratch index='3'/></disk>"), "vda", NULL);
    check_scratch_device(BACKUP("<disk name='vdb' index='2'><disk name='vda' index='3'/></disk>"), "vda", NULL);
    check_scratch_device("<domainbackup><disk name='vda' index='3'/></domainbackup>", "vda", NULL);
    check_scratch_device(DISKS("<disk name='vda' index='3'/>"), "vda", NULL);
}

static void test_what_is_no_backup_has_no_scratch_file(void) {
    static const char *const texts[] = {"",
                                        "no XML",
                                        "<domainbackup",
                                        "<domainbackup/>",
                                        "<domainbackup><disks/></domainbackup>",
                                        "<disk name='vda' index='3'/>",
                                        "<domainbackup><disks><disk name='vda' index='3'>"};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++)
        check_scratch_device(texts[i], "vda", NULL);
}

/* The name is compared as text: nothing in it is a part of the question. */
static void test_odd_names_have_their_scratch_file(void) {
    static const char *const odd[] = {
        "a b", "a&b", "a<b>", "a'b", "a\"b", "a'\"b", "vda' or '1'='1", "vda'] | //disk[@index='3",
        "*",   "ü€",  "%s%n", "]]>",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(odd); i++) {
        g_autofree char *escaped = g_markup_escape_text(odd[i], -1);
        g_autofree char *xml =
            g_strdup_printf(BACKUP("<disk name='vda' index='3'/><disk name=\"%s\" index='4'/>"), escaped);
        g_autofree char *expected = g_strconcat(odd[i], "[4]", NULL);
        check_scratch_device(xml, odd[i], expected);
        check_scratch_device(xml, "vda", "vda[3]");
        check_scratch_device(BACKUP("<disk name='vda' index='3'/>"), odd[i], NULL);
    }
}

static void test_hostile_backups_end(void) {
    g_autoptr(GString) deep = g_string_new("<domainbackup><disks>"), many = g_string_new("<domainbackup><disks>");
    for (unsigned i = 0; i < 100000; i++) {
        g_string_append(deep, "<disk name='vda' index='3'>");
        g_string_append_printf(many, "<disk name='vd%u' index='%u'/>", i, i);
    }
    g_string_append(many, "</disks></domainbackup>");
    check_scratch_device(deep->str, "vda", NULL);
    g_autofree char *device = vmsnap_domain_parse_scratch_device(many->str, "vd99");
    g_assert_cmpstr(device, ==, "vd99[99]");
    check_scratch_device("<!DOCTYPE d [<!ENTITY a 'x'><!ENTITY b '&a;&b;'>]><domainbackup><disks>"
                         "<disk name='&b;' index='3'/></disks></domainbackup>",
                         "vda", NULL);
    check_scratch_device("<!DOCTYPE d [<!ENTITY f SYSTEM 'file:///etc/hostname'>]><domainbackup><disks>"
                         "<disk name='vda' index='3'>&f;</disk></disks></domainbackup>",
                         "vda", "vda[3]");
}

static void test_free_takes_null(void) {
    vmsnap_domain_free(NULL);
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/domain/a-domain-has-name-uuid-and-disks", test_a_domain_has_name_uuid_and_disks);
    g_test_add_func("/domain/a-domain-may-have-no-disks", test_a_domain_may_have_no_disks);
    g_test_add_func("/domain/each-kind-of-drive-is-judged", test_each_kind_of_drive_is_judged);
    g_test_add_func("/domain/disks-of-iothreads-can-be-refused", test_disks_of_iothreads_can_be_refused);
    g_test_add_func("/domain/escaped-text-is-read-as-it-is-meant", test_escaped_text_is_read_as_it_is_meant);
    g_test_add_func("/domain/the-owner-is-the-dac-label", test_the_owner_is_the_dac_label);
    g_test_add_func("/domain/boot-files-are-found", test_boot_files_are_found);
    g_test_add_func("/domain/nvram-may-be-described-as-a-disk-is", test_nvram_may_be_described_as_a_disk_is);
    g_test_add_func("/domain/what-is-no-domain-is-refused", test_what_is_no_domain_is_refused);
    g_test_add_func("/domain/targets-that-are-no-file-names-are-refused",
                    test_targets_that_are_no_file_names_are_refused);
    g_test_add_func("/domain/deep-nesting-ends-in-an-error-or-a-domain",
                    test_deep_nesting_ends_in_an_error_or_a_domain);
    g_test_add_func("/domain/a-huge-domain-is-read-in-no-time", test_a_huge_domain_is_read_in_no_time);
    g_test_add_func("/domain/no-file-is-read-through-an-entity", test_no_file_is_read_through_an_entity);
    g_test_add_func("/domain/a-billion-laughs-take-no-time", test_a_billion_laughs_take_no_time);
    g_test_add_func("/domain/an-entity-of-itself-ends", test_an_entity_of_itself_ends);
    g_test_add_func("/domain/disks-are-chosen-as-asked", test_disks_are_chosen_as_asked);
    g_test_add_func("/domain/a-disk-that-cannot-be-backed-up-is-named-with-the-remedy",
                    test_a_disk_that_cannot_be_backed_up_is_named_with_the_remedy);
    g_test_add_func("/domain/asking-for-a-cdrom-is-refused", test_asking_for_a_cdrom_is_refused);
    g_test_add_func("/domain/names-that-are-no-disks-are-refused", test_names_that_are_no_disks_are_refused);
    g_test_add_func("/domain/no-disk-left-is-an-error", test_no_disk_left_is_an_error);
    g_test_add_func("/domain/the-backup-names-every-disk", test_the_backup_names_every_disk);
    g_test_add_func("/domain/the-backup-keeps-odd-names-and-paths", test_the_backup_keeps_odd_names_and_paths);
    g_test_add_func("/domain/the-socket-of-a-job-is-read", test_the_socket_of_a_job_is_read);
    g_test_add_func("/domain/the-scratch-file-of-a-job-has-a-number", test_the_scratch_file_of_a_job_has_a_number);
    g_test_add_func("/domain/only-the-disk-of-that-name-has-its-scratch-file",
                    test_only_the_disk_of_that_name_has_its_scratch_file);
    g_test_add_func("/domain/what-is-no-backup-has-no-scratch-file", test_what_is_no_backup_has_no_scratch_file);
    g_test_add_func("/domain/odd-names-have-their-scratch-file", test_odd_names_have_their_scratch_file);
    g_test_add_func("/domain/hostile-backups-end", test_hostile_backups_end);
    g_test_add_func("/domain/free-takes-null", test_free_takes_null);
    return g_test_run();
}
