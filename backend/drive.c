/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "drive.h"

#include "vmsnap/error.h"

#include <string.h>

/* A name of a file has up to 255 bytes (NAME_MAX), of which something is left for what follows: ".since-c1.qcow2". */
#define MAX_NAME_BYTES 200

void vmsnap_drive_clear(VmsnapDrive *drive) {
    g_free(drive->name);
    g_free(drive->source);
}

gboolean vmsnap_drive_name_is_safe(const char *name) {
    return name && name[0] && name[0] != '.' && !strchr(name, '/') && strlen(name) <= MAX_NAME_BYTES;
}

static const VmsnapDrive *drive_find(const GPtrArray *drives, const char *name) {
    for (guint i = 0; i < drives->len; i++) {
        const VmsnapDrive *drive = g_ptr_array_index(drives, i);
        if (g_str_equal(drive->name, name))
            return drive;
    }
    return NULL;
}

static char *names_join(const GPtrArray *drives) {
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    for (guint i = 0; i < drives->len; i++)
        g_ptr_array_add(names, ((VmsnapDrive *)g_ptr_array_index(drives, i))->name);
    g_ptr_array_add(names, NULL);
    return g_strjoinv(", ", (char **)names->pdata);
}

static gboolean names_exist(const GPtrArray *drives, const char *owner, const char *option, const char *const *names,
                            GError **error) {
    for (; names && *names; names++) {
        if (drive_find(drives, *names))
            continue;
        g_autofree char *known = names_join(drives);
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to find disk '%s' of %s= in %s: its disks are %s",
                    *names, option, owner, known);
        return FALSE;
    }
    return TRUE;
}

static gboolean drive_refuse(const VmsnapDrive *drive, const char *owner, GError **error) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to back up disk '%s' of %s: it %s; leave it out with -o exclude=%s", drive->name, owner,
                drive->reason, drive->name);
    return FALSE;
}

/* Decides about one drive. Returns: FALSE if it must be refused. */
static gboolean drive_select(VmsnapDrive *drive, const char *owner, const char *const *only, const char *const *exclude,
                             GPtrArray *selected, VmsnapSnapshot *left_out, GError **error) {
    if (exclude && g_strv_contains(exclude, drive->name)) {
        vmsnap_snapshot_add_left_out(left_out, drive->name, "was excluded");
    } else if (only && !g_strv_contains(only, drive->name)) {
        vmsnap_snapshot_add_left_out(left_out, drive->name, "was not asked for");
    } else if (drive->media == VMSNAP_MEDIA_REFUSED || (only && drive->media != VMSNAP_MEDIA_WRITABLE)) {
        return drive_refuse(drive, owner, error);
    } else if (drive->media == VMSNAP_MEDIA_LEFT_OUT) {
        vmsnap_snapshot_add_left_out(left_out, drive->name, drive->reason);
    } else {
        g_ptr_array_add(selected, drive);
    }
    return TRUE;
}

static void set_nothing_selected_error(const char *owner, const VmsnapSnapshot *left_out, GError **error) {
    g_autoptr(GString) reasons = g_string_new(NULL);
    for (guint i = 0; i < left_out->left_out->len; i++) {
        const VmsnapLeftOut *drive = g_ptr_array_index(left_out->left_out, i);
        g_string_append_printf(reasons, "%s%s %s", i > 0 ? ", " : "", drive->name, drive->reason);
    }
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to back up %s: no disk is left to back up (%s); change -o disks= or exclude=", owner,
                reasons->len > 0 ? reasons->str : "it has none");
}

GPtrArray *vmsnap_drives_select(const GPtrArray *drives, const char *owner, const char *const *only,
                                const char *const *exclude, VmsnapSnapshot *ret_left_out, GError **error) {
    if (!names_exist(drives, owner, "disks", only, error) || !names_exist(drives, owner, "exclude", exclude, error))
        return NULL;
    g_autoptr(GPtrArray) selected = g_ptr_array_new();
    for (guint i = 0; i < drives->len; i++)
        if (!drive_select(g_ptr_array_index(drives, i), owner, only, exclude, selected, ret_left_out, error))
            return NULL;
    if (selected->len > 0)
        return g_steal_pointer(&selected);
    set_nothing_selected_error(owner, ret_left_out, error);
    return NULL;
}
