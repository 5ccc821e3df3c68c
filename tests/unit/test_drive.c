/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which drives are chosen, whatever machine or server they are of: test_domain.c has more, through libvirt's XML. */
#include "backend/drive.h"

#include "memory_backend.h"
#include "vmsnap/error.h"

#include <string.h>

static void drive_free(gpointer data) {
    vmsnap_drive_clear(data);
    g_free(data);
}

static void drive_add(GPtrArray *drives, const char *name, VmsnapMedia media, const char *reason) {
    VmsnapDrive *drive = g_new0(VmsnapDrive, 1);
    drive->name = g_strdup(name);
    drive->source = g_strdup("somewhere");
    drive->media = media;
    drive->reason = reason;
    g_ptr_array_add(drives, drive);
}

static GPtrArray *drives_new(void) {
    GPtrArray *drives = g_ptr_array_new_with_free_func(drive_free);
    drive_add(drives, "disk0", VMSNAP_MEDIA_WRITABLE, NULL);
    drive_add(drives, "disk1", VMSNAP_MEDIA_WRITABLE, NULL);
    drive_add(drives, "empty", VMSNAP_MEDIA_LEFT_OUT, "has no bytes");
    return drives;
}

/* Returns: (transfer full): the names that were chosen, or what the error says. */
static char *choose(const GPtrArray *drives, const char *const *only, const char *const *exclude) {
    g_autoptr(GError) error = NULL;
    VmsnapSnapshot *left_out = memory_snapshot_new(NULL);
    g_autoptr(GPtrArray) selected = vmsnap_drives_select(drives, "server 'x'", only, exclude, left_out, &error);
    GString *text = g_string_new(error ? error->message : NULL);
    g_assert_true((selected != NULL) != (error != NULL));
    for (guint i = 0; selected && i < selected->len; i++)
        g_string_append_printf(text, "%s ", ((const VmsnapDrive *)g_ptr_array_index(selected, i))->name);
    g_assert_cmpuint(error ? drives->len : selected->len + left_out->left_out->len, ==, drives->len);
    memory_snapshot_end(left_out);
    vmsnap_snapshot_free(left_out);
    return g_string_free(text, FALSE);
}

static void test_drives_are_chosen_by_name(void) {
    g_autoptr(GPtrArray) drives = drives_new();
    g_autofree char *all = choose(drives, NULL, NULL);
    g_autofree char *one = choose(drives, (const char *const[]){"disk1", NULL}, NULL);
    g_autofree char *other = choose(drives, NULL, (const char *const[]){"disk1", NULL});
    g_assert_cmpstr(all, ==, "disk0 disk1 ");
    g_assert_cmpstr(one, ==, "disk1 ");
    g_assert_cmpstr(other, ==, "disk0 ");
}

static void test_errors_name_the_owner(void) {
    g_autoptr(GPtrArray) drives = drives_new();
    g_autofree char *unknown = choose(drives, (const char *const[]){"disk2", NULL}, NULL);
    g_autofree char *refused = choose(drives, (const char *const[]){"empty", NULL}, NULL);
    g_autofree char *nothing = choose(drives, NULL, (const char *const[]){"disk0", "disk1", NULL});
    g_assert_cmpstr(unknown, ==,
                    "failed to find disk 'disk2' of disks= in server 'x': its disks are disk0, disk1, empty");
    g_assert_cmpstr(
        refused, ==,
        "failed to back up disk 'empty' of server 'x': it has no bytes; leave it out with -o exclude=empty");
    g_assert_cmpstr(nothing, ==,
                    "failed to back up server 'x': no disk is left to back up (disk0 was excluded, disk1 was excluded, "
                    "empty has no bytes); change -o disks= or exclude=");
}

static void test_no_drives_are_an_error(void) {
    g_autoptr(GPtrArray) drives = g_ptr_array_new();
    g_autofree char *text = choose(drives, NULL, NULL);
    g_assert_nonnull(strstr(text, "server 'x': no disk is left to back up (it has none)"));
}

static void test_names_become_names_of_files(void) {
    static const char *const unsafe[] = {NULL, "", "a/b", "/", ".", "..", ".hidden"};
    static const char *const safe[] = {"vda", "a b", "vda.1", "-"};
    for (size_t i = 0; i < G_N_ELEMENTS(unsafe); i++)
        g_assert_false(vmsnap_drive_name_is_safe(unsafe[i]));
    for (size_t i = 0; i < G_N_ELEMENTS(safe); i++)
        g_assert_true(vmsnap_drive_name_is_safe(safe[i]));
    g_autofree char *longest = g_strnfill(200, 'x'), *longer = g_strnfill(201, 'x');
    g_assert_true(vmsnap_drive_name_is_safe(longest));
    g_assert_false(vmsnap_drive_name_is_safe(longer));
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/drive/drives-are-chosen-by-name", test_drives_are_chosen_by_name);
    g_test_add_func("/drive/errors-name-the-owner", test_errors_name_the_owner);
    g_test_add_func("/drive/no-drives-are-an-error", test_no_drives_are_an_error);
    g_test_add_func("/drive/names-become-names-of-files", test_names_become_names_of_files);
    return g_test_run();
}
