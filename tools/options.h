/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The command line and the option string of mount.vmsnap. */
#pragma once

#include "fs/format.h"

#include <glib.h>
#include <stdint.h>
#include <sys/types.h>

/** When a checkpoint is committed. */
typedef enum {
    VMSNAP_COMMIT_UMOUNT,   /* when the mount ends, if all who read got what they asked for */
    VMSNAP_COMMIT_EXPLICIT, /* when the mount ends, if somebody has given the order before */
} VmsnapCommitMode;

/** What the user wants, checked for sense but not against the system. */
typedef struct {
    char *source;
    char *mount_point; /* as typed */
    gboolean fake;
    gboolean sloppy;
    gboolean verbose;
    gboolean foreground;
    gboolean show_version;
    gboolean cleanup; /* then there is no mount point, and the source may be NULL */

    char *connect_uri;
    char **disks;   /* NULL for all */
    char **exclude; /* NULL for none */
    VmsnapFormatOptions format;
    gboolean has_cluster_size;
    char *backing;              /* format.backing is this */
    char **config_paths;        /* as typed; NULL for none */
    GPtrArray *config_contents; /* of GBytes, in the same order; filled in by who reads them */
    char *scratch_dir;          /* absolute; NULL for the default */
    uid_t uid;
    gid_t gid;
    mode_t mode;
    gboolean read_only;
    gboolean allow_other;
    unsigned timeout_ms;
    unsigned connections;       /* per disk */
    uint64_t readahead_bytes;   /* 0 for no read-ahead */
    uint64_t speed_bytes_per_s; /* 0 for no limit */
    VmsnapQuiesceMode quiesce;
    char *agent; /* absolute; NULL for none */
    unsigned freeze_timeout_ms;
    uint64_t scratch_reserve_bytes;
    uint64_t scratch_max_bytes; /* 0 for no limit */
    char *checkpoint;           /* NULL for none */
    char *since;                /* NULL for none */
    gboolean incremental;
    unsigned keep_checkpoints; /* 0 for all */
    VmsnapCommitMode commit;
    gboolean has_commit;
    gboolean release;
    GString *mount_options; /* for the kernel, comma-separated; may be empty */
    GPtrArray *given;       /* names of the options of -o that are vmsnap's own; static strings */
} VmsnapOptions;

/**
 * vmsnap_options_parse:
 *
 * Reads a command line; prints the help and exits where that is asked for.
 * Returns: (transfer full): the options, or NULL with @error set.
 */
VmsnapOptions *vmsnap_options_parse(int argc, char **argv, GError **error);

/** NULL-safe. */
void vmsnap_options_free(VmsnapOptions *options);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapOptions, vmsnap_options_free)
