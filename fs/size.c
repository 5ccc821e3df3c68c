/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* GLib writes such numbers but does not read them. */
#include "size.h"

#include <string.h>

gboolean vmsnap_size_parse(const char *text, uint64_t *ret_bytes) {
    static const char suffixes[] = "KMGT";
    size_t n_digits = strspn(text, "0123456789");
    const char *suffix = text[n_digits] ? strchr(suffixes, g_ascii_toupper(text[n_digits])) : NULL;
    if (text[n_digits] && (!suffix || text[n_digits + 1]))
        return FALSE;
    unsigned shift = suffix ? 10 * (unsigned)(suffix - suffixes + 1) : 0;
    g_autofree char *digits = g_strndup(text, n_digits);
    guint64 number;
    if (!g_ascii_string_to_unsigned(digits, 10, 0, UINT64_MAX >> shift, &number, NULL))
        return FALSE;
    *ret_bytes = number << shift;
    return TRUE;
}
