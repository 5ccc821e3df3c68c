/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Exports have any bytes as a name; disks have names that files and options can have, and no two the same. */
#include "backend/export_names.h"

#include "backend/drive.h"

#include <string.h>

static GPtrArray *names_new(const char *const *names) {
    GPtrArray *array = g_ptr_array_new();
    for (; *names; names++)
        g_ptr_array_add(array, (gpointer)*names);
    return array;
}

static void test_names_are_kept_where_they_can_be(void) {
    static const struct {
        const char *export_name;
        const char *disk;
    } cases[] = {
        {"vda", "vda"},
        {"a b", "a b"},
        {"disk.raw", "disk.raw"},
        {"f\xc3\xbcr", "f\xc3\xbcr"},
        {"vg/lv", "vg%2Flv"},
        {"/", "%2F"},
        {".", "%2E"},
        {"..", "%2E."},
        {".hidden", "%2Ehidden"},
        {"a:b,c\"d\\", "a%3Ab%2Cc%22d%5C"},
        {"100%", "100%25"},
        {"a\nb\t\x7f", "a%0Ab%09%7F"},
        {"\xff\xc3", "%FF%C3"},
        /* Too long a way to write a slash, a surrogate, and a change of the direction. */
        {"\xc0\xaf", "%C0%AF"},
        {"\xed\xa0\x80", "%ED%A0%80"},
        {"a\xe2\x80\xae"
         "b",
         "a%E2%80%AEb"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *disk = vmsnap_export_name_disk(cases[i].export_name, NULL);
        g_assert_cmpstr(disk, ==, cases[i].disk);
        g_assert_true(vmsnap_drive_name_is_safe(disk));
        g_assert_true(g_utf8_validate(disk, -1, NULL));
    }
}

static void test_what_has_no_name_gets_one(void) {
    g_autoptr(GPtrArray) alone = names_new((const char *const[]){"", NULL});
    g_autoptr(GPtrArray) others = names_new((const char *const[]){"disk", "", "disk%", NULL});
    g_autofree char *one = vmsnap_export_name_disk("", alone);
    g_autofree char *other = vmsnap_export_name_disk("", others);
    g_autofree char *same = vmsnap_export_name_disk("disk", others);
    g_autofree char *percent = vmsnap_export_name_disk("disk%", others);
    g_assert_cmpstr(one, ==, "disk");
    g_assert_cmpstr(other, ==, "disk%");
    g_assert_cmpstr(same, ==, "disk");
    g_assert_cmpstr(percent, ==, "disk%25");
}

static char *repeated(const char *text, size_t count, const char *end) {
    GString *name = g_string_new(NULL);
    while (count-- > 0)
        g_string_append(name, text);
    return g_string_free(g_string_append(name, end), FALSE);
}

static void test_long_names_are_cut_and_stay_different(void) {
    static const char *const texts[] = {"x", "/", "\xc3\xbc", "\xf0\x9f\x98\x80", "\xff"};
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autofree char *first = repeated(texts[i], 4096, "1"), *second = repeated(texts[i], 4096, "2");
        g_autofree char *first_disk = vmsnap_export_name_disk(first, NULL);
        g_autofree char *second_disk = vmsnap_export_name_disk(second, NULL);
        g_autofree char *again = vmsnap_export_name_disk(first, NULL);
        g_assert_cmpuint(strlen(first_disk), <=, 255 - strlen(".qcow2"));
        g_assert_true(g_utf8_validate(first_disk, -1, NULL));
        g_assert_cmpstr(first_disk, !=, second_disk);
        g_assert_cmpstr(first_disk, ==, again);
    }
    g_autofree char *longest = repeated("x", 200, "");
    g_autofree char *disk = vmsnap_export_name_disk(longest, NULL);
    g_assert_cmpstr(disk, ==, longest);
}

static char *random_name(void) {
    static const char bytes[] = "a.%/:2FE\xc3\xbc\xff~";
    char name[8] = "";
    for (int i = g_test_rand_int_range(0, 7); i > 0; i--)
        name[i - 1] = bytes[g_test_rand_int_range(0, sizeof bytes - 1)];
    name[0] = name[0] ? name[0] : 'a';
    return g_strdup(name);
}

static void test_different_names_stay_different(void) {
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    for (int i = 0; i < 100000; i++) {
        char *name = random_name();
        char *disk = vmsnap_export_name_disk(name, NULL);
        const char *before = g_hash_table_lookup(seen, disk);
        if (before)
            g_assert_cmpstr(before, ==, name);
        g_assert_true(vmsnap_drive_name_is_safe(disk));
        (void)g_hash_table_replace(seen, disk, name);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/export-names/are-kept-where-they-can-be", test_names_are_kept_where_they_can_be);
    g_test_add_func("/export-names/what-has-none-gets-one", test_what_has_no_name_gets_one);
    g_test_add_func("/export-names/long-ones-are-cut-and-stay-different", test_long_names_are_cut_and_stay_different);
    g_test_add_func("/export-names/different-ones-stay-different", test_different_names_stay_different);
    return g_test_run();
}
