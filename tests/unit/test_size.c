/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Sizes as people write them, and what is none. */
#include "fs/size.h"

static void test_sizes_are_digits_and_a_suffix(void) {
    static const struct {
        const char *text;
        uint64_t bytes;
    } cases[] = {
        {"0", 0},
        {"0K", 0},
        {"1", 1},
        {"007", 7},
        {"010", 10},
        {"4096", 4096},
        {"1K", UINT64_C(1) << 10},
        {"1k", UINT64_C(1) << 10},
        {"3M", UINT64_C(3) << 20},
        {"3m", UINT64_C(3) << 20},
        {"64G", UINT64_C(64) << 30},
        {"64g", UINT64_C(64) << 30},
        {"5T", UINT64_C(5) << 40},
        {"5t", UINT64_C(5) << 40},
        {"18446744073709551615", UINT64_MAX},
        {"18014398509481983K", UINT64_MAX >> 10 << 10},
        {"17592186044415M", UINT64_MAX >> 20 << 20},
        {"17179869183G", UINT64_MAX >> 30 << 30},
        {"16777215T", UINT64_MAX >> 40 << 40},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        uint64_t bytes = 12345;
        g_assert_true(vmsnap_size_parse(cases[i].text, &bytes));
        g_assert_cmpuint(bytes, ==, cases[i].bytes);
    }
}

static void test_anything_else_is_no_size(void) {
    static const char *const texts[] = {
        "",    " ",   "K",    "M5",  "-1",  "+1",   "- 1",  " 1",  "1 ",  "1 K",  "1K ",   "1\n",
        "1KB", "1KK", "1KiB", "1MK", "1.5", "1.5M", "1,5M", "1e3", "0x1", "1B",   "1P",    "1E",
        "K1",  "ten", "1K1",  "\t1", "1\t", "1/s",  "1M/s", "M",   "--1", "\xb2", "1\xb2", "\xd9\xa1",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        uint64_t bytes = 12345;
        if (vmsnap_size_parse(texts[i], &bytes))
            g_error("'%s' is taken for a size", texts[i]);
        g_assert_cmpuint(bytes, ==, 12345);
    }
}

static void test_what_does_not_fit_is_no_size(void) {
    static const char *const texts[] = {
        "18446744073709551616",
        "18014398509481984K",
        "17592186044416M",
        "17179869184G",
        "16777216T",
        "18446744073709551615K",
        "99999999999999999999999999",
        "99999999999999999999999999T",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(texts); i++) {
        uint64_t bytes = 12345;
        g_assert_false(vmsnap_size_parse(texts[i], &bytes));
        g_assert_cmpuint(bytes, ==, 12345);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/size/sizes-are-digits-and-a-suffix", test_sizes_are_digits_and_a_suffix);
    g_test_add_func("/size/anything-else-is-no-size", test_anything_else_is_no_size);
    g_test_add_func("/size/what-does-not-fit-is-no-size", test_what_does_not_fit_is_no_size);
    return g_test_run();
}
