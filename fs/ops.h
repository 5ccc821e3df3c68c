/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The FUSE operations over a view. */
#pragma once

#include "open_files.h"
#include "session.h"

struct fuse_lowlevel_ops;

/** What the operations work on; immutable once requests are served. */
typedef struct {
    VmsnapView *view;
    void (*ready)(gpointer user_data); /* called when the first request is served */
    gpointer ready_data;
    VmsnapOpenFiles *open_files; /* owned */
    uid_t uid;
    gid_t gid;
    mode_t file_mode;
    mode_t directory_mode;
    int64_t block_count_deadline_us; /* g_get_monotonic_time() from which nobody waits for a map any more */
} VmsnapOps;

/** The table for fuse_session_new(), whose user data is a VmsnapOps. */
extern const struct fuse_lowlevel_ops vmsnap_fuse_operations;

void vmsnap_ops_init(VmsnapOps *ops, VmsnapView *view, const VmsnapSessionOptions *options);

/** Frees what is in @ops, once no request can come or is in flight. */
void vmsnap_ops_clear(VmsnapOps *ops);
