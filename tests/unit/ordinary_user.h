/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Root's files are in /run/vmsnap and /var/lib/vmsnap, where others may be mounted at this moment: so a test that makes
 * such files becomes an ordinary user first, whose directories are below one of the test's own.
 */
#pragma once

#include <glib.h>
#include <grp.h>
#include <sys/prctl.h>
#include <unistd.h>

#define NOBODY 65534

/* The leak checker traces its own process, which the kernel forbids after a change of the user. */
static inline void become_ordinary_user(void) {
    if (geteuid() != 0)
        return;
    g_assert_cmpint(setgroups(0, NULL), ==, 0);
    g_assert_cmpint(setresgid(NOBODY, NOBODY, NOBODY), ==, 0);
    g_assert_cmpint(setresuid(NOBODY, NOBODY, NOBODY), ==, 0);
    g_assert_cmpint(prctl(PR_SET_DUMPABLE, 1), ==, 0);
}

static inline void remove_tree(const char *path) {
    const char *const arguments[] = {"rm", "-rf", "--", path, NULL};
    g_assert_true(
        g_spawn_sync(NULL, (char **)arguments, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL, NULL));
}
