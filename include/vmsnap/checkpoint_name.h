/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which names checkpoints can have: they become part of file names. */
#pragma once

#include <glib.h>
#include <string.h>

/** Returns: whether a checkpoint can be called so. */
static inline gboolean vmsnap_checkpoint_name_is_valid(const char *name) {
    return name[0] && name[0] != '.' && !strpbrk(name, "/\r\n\t") && g_utf8_validate(name, -1, NULL);
}
