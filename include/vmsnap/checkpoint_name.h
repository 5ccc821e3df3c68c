/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which names checkpoints can have: they become part of file names, and of XML. */
#pragma once

#include <glib.h>
#include <string.h>

/** Returns: whether a checkpoint can be called so. */
static inline gboolean vmsnap_checkpoint_name_is_valid(const char *name) {
    if (!name[0] || name[0] == '.' || strchr(name, '/') || !g_utf8_validate(name, -1, NULL))
        return FALSE;
    for (const char *c = name; *c; c = g_utf8_next_char(c))
        if (!g_unichar_isprint(g_utf8_get_char(c)))
            return FALSE;
    return TRUE;
}
