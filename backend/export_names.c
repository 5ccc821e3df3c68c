/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What servers list may come in another order each time. So a name does not depend on the others, but is escaped in a
 * way that can be undone; all that is made up has a percent sign that nothing escaped has.
 */
#include "export_names.h"

#include <string.h>

/* The longest suffix of a file fits behind it. */
#define MAX_LENGTH 200
#define HASH_LENGTH 16

/* A slash ends a name, a colon or comma does so in disks=, a quote begins one there, and a percent sign escapes. */
static gboolean is_plain(gunichar c, gboolean first) {
    return g_unichar_isprint(c) && !(c < 128 && strchr("/:,\"\\%", (int)c)) && !(first && c == '.');
}

static char *name_escape(const char *name) {
    GString *escaped = g_string_new(NULL);
    for (const char *c = name; *c;) {
        gunichar read = g_utf8_get_char_validated(c, -1);
        gboolean is_valid = read != (gunichar)-1 && read != (gunichar)-2;
        const char *next = is_valid ? g_utf8_next_char(c) : c + 1;
        if (is_valid && is_plain(read, c == name))
            (void)g_string_append_len(escaped, c, next - c);
        else
            for (; c < next; c++)
                g_string_append_printf(escaped, "%%%02X", (unsigned char)*c);
        c = next;
    }
    return g_string_free(escaped, FALSE);
}

static char *name_shorten(const char *escaped, const char *name) {
    g_autofree char *hash = g_compute_checksum_for_string(G_CHECKSUM_SHA256, name, -1);
    const char *end = g_utf8_find_prev_char(escaped, escaped + MAX_LENGTH + 1);
    return g_strdup_printf("%.*s%%~%.*s", (int)(end - escaped), escaped, HASH_LENGTH, hash);
}

static gboolean has_name(const GPtrArray *names, const char *name) {
    return names && g_ptr_array_find_with_equal_func((GPtrArray *)names, name, g_str_equal, NULL);
}

char *vmsnap_export_name_disk(const char *export_name, const GPtrArray *all) {
    if (!export_name[0])
        return g_strdup(has_name(all, VMSNAP_EXPORT_UNNAMED) ? VMSNAP_EXPORT_UNNAMED "%" : VMSNAP_EXPORT_UNNAMED);
    g_autofree char *escaped = name_escape(export_name);
    return strlen(escaped) <= MAX_LENGTH ? g_steal_pointer(&escaped) : name_shorten(escaped, export_name);
}
