/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one seam between backend/ and fs/: a snapshot with disks that can be read. It owns the words and their promises;
 * it knows neither libvirt, QMP and NBD (behind it) nor FUSE and files (before it).
 *
 * The consistency promise
 *
 * - All disks of a snapshot show one instant. Every write that the guest had seen completed before instant_ns is in it,
 *   and no write that it began after vmsnap_snapshot_begin() returned is.
 * - A read gives the bytes of that instant or an error, never other bytes, and the same range reads the same every
 *   time: as long as nobody but us ends the snapshot. Where somebody else does, reads of that moment may see the
 *   present, since QEMU drops copy-before-write before libvirt drops the export. So what makes a copy good is
 *   vmsnap_snapshot_end().
 * - What was released is of no instant any more: a read that ends after it was asked for may give anything, also one
 *   that began before.
 * - A lost snapshot is sticky: after vmsnap_snapshot_break() every read of every disk fails with -EIO, and
 *   vmsnap_snapshot_end() fails.
 * - A zero extent is zeroes in the content of that instant; a data extent may hold zeroes too. A clean extent is as it
 *   was at the instant of the checkpoint that the disk's changes count from; a dirty one may be, too.
 * - vmsnap_snapshot_end() leaves the machine as it was: no job, and nothing frozen. It is called once, and when it
 *   returns every callback has been called. What is left on this host, scratch and socket, is named by the record, and
 *   vmsnap_snapshot_remove_left() removes it. vmsnap_snapshot_recover() does the rest after a process that could not
 * end its snapshot.
 */
#pragma once

#include "vmsnap/record.h"

#include <glib.h>
#include <stdint.h>

/**
 * What is released is made of such units, from the beginning of the disk on. QEMU keeps old data by clusters of 64 KiB
 * or more, and QEMU 7.2, asked to discard a part of one, fails an assertion and ends, guest and all. A whole MiB is
 * whole clusters, whatever their size.
 */
#define VMSNAP_RELEASE_UNIT_BYTES (UINT64_C(1) << 20)

typedef struct VmsnapBackend VmsnapBackend;
typedef struct VmsnapSnapshot VmsnapSnapshot;
typedef struct VmsnapDisk VmsnapDisk;

/** A question has two answers, of which the first is the one to give where there is a doubt. */
typedef enum {
    VMSNAP_EXTENT_DATA,
    VMSNAP_EXTENT_ZERO,
    VMSNAP_EXTENT_DIRTY = VMSNAP_EXTENT_DATA,
    VMSNAP_EXTENT_CLEAN = VMSNAP_EXTENT_ZERO,
} VmsnapExtentKind;

typedef enum {
    VMSNAP_EXTENTS_OF_CONTENT, /* data or zero */
    VMSNAP_EXTENTS_OF_CHANGES, /* dirty or clean; for disks with VmsnapDisk.since */
} VmsnapExtentsQuestion;

/** A run of bytes of one kind. Where it begins follows from the runs before it. */
typedef struct {
    uint64_t length_bytes;
    VmsnapExtentKind kind;
} VmsnapExtent;

typedef enum {
    VMSNAP_FILE_CONFIG, /* describes the machine */
    VMSNAP_FILE_BOOT,   /* what it boots from: firmware variables, a kernel */
    VMSNAP_FILE_HIDDEN, /* tells of the snapshot, and belongs into .vmsnap/ */
} VmsnapFileKind;

/** A small file that belongs to the snapshot. */
typedef struct {
    char *name;
    GBytes *content;
    VmsnapFileKind kind;
} VmsnapConfigFile;

/** A disk of the machine that is not part of the snapshot, and why. */
typedef struct {
    char *name;
    char *reason;
} VmsnapLeftOut;

/** A program that took part, for the manifest. */
typedef struct {
    char *program;
    char *version;
} VmsnapVersion;

/** Whether the guest's filesystems are frozen for the moment of the instant. */
typedef enum {
    VMSNAP_QUIESCE_NO,
    VMSNAP_QUIESCE_TRY,     /* if that fails, the snapshot is begun nevertheless, and says so */
    VMSNAP_QUIESCE_REQUIRE, /* if that fails, nothing is begun */
} VmsnapQuiesceMode;

/**
 * VmsnapCheckFunc:
 * @snapshot: its machine, the names of its disks, and the files that describe the machine are known; files may be
 *   added. The sizes of the disks are still 0
 *
 * Called before anything is begun or made. Returns: FALSE with @error set if nothing is to be begun.
 */
typedef gboolean (*VmsnapCheckFunc)(VmsnapSnapshot *snapshot, gpointer user_data, GError **error);

/**
 * VmsnapClearFunc:
 *
 * Has somebody with more rights clear in the machine what the record's file tells of, while the snapshot lives: it is
 * lost, and this process may not do that any more. That one writes the record, and the caller must not meanwhile.
 * Blocks; any thread, one at a time. Returns: whether all is cleared, and the file says so. It may be tried again.
 */
typedef gboolean (*VmsnapClearFunc)(gpointer user_data);

/** What the user asked for. All strings belong to the caller and must outlive the call. */
typedef struct {
    const char *uuid;           /* of the snapshot to begin */
    int record_fd;              /* from vmsnap_record_open() for that uuid; stays the caller's, and open to the end */
    const char *source;         /* as typed */
    const char *connect_uri;    /* libvirt URI, or NULL for libvirt's default */
    const char *const *disks;   /* only these, or NULL for every disk that can be backed up */
    const char *const *exclude; /* not these, or NULL */
    const char *scratch_dir;    /* directory for scratch files, or NULL for the default on disk */
    const char *mount_point;    /* absolute; only told to others, never opened by a backend */
    unsigned connections;       /* connections per disk where the server allows several, at least 1 */
    unsigned timeout_ms;        /* for the job to end, and for each single step that can be bounded */
    VmsnapQuiesceMode quiesce;
    const char *agent;              /* path of the guest agent's socket, or NULL if libvirt knows it */
    unsigned freeze_timeout_ms;     /* for the guest to freeze, and then to be frozen */
    uint64_t scratch_reserve_bytes; /* what scratch must leave free in its filesystem */
    uint64_t scratch_max_bytes;     /* what all scratch files may use together, or 0 for no limit */
    const char *checkpoint;         /* name of the one to create at the instant, or NULL */
    const char *since;              /* name of the one that all changes are to count from, or NULL */
    gboolean incremental;           /* a new one, and since the newest of vmsnap's: as far as possible */
    unsigned keep_checkpoints;      /* how many of vmsnap's stay when a new one is committed, or 0 for all */
    gboolean release;               /* ranges are to be released; a backend that cannot must refuse */
    VmsnapCheckFunc check;
    gpointer check_data;
    VmsnapClearFunc clear; /* or NULL; this and its data are used until the snapshot has ended */
    gpointer clear_data;
} VmsnapBeginOptions;

/** One disk of a snapshot. Every field is immutable from begin to free, but for the last. */
struct VmsnapDisk {
    VmsnapSnapshot *snapshot; /* the owner */
    char *name;               /* target name, "vda" */
    char *source;             /* where the machine keeps it, for people; may be NULL */
    uint64_t size_bytes;
    uint64_t boundary_bytes; /* a read must not cross a multiple of it; 0: it may */
    gboolean can_release;    /* ranges may be given to vmsnap_disk_release() */
    char *since;             /* name of the checkpoint that its changes count from; NULL if nobody knows what changed */
    char *full_reason;       /* why nobody knows, although that was asked for; or NULL */
    uint64_t since_size_bytes; /* its size at that checkpoint, or 0 if that is not known, as the next one */
    int64_t since_modified_ns; /* modified_ns at that checkpoint */
    int64_t modified_ns;       /* when it was changed last, as far as is known: set by who has looked at all changes,
                                  before the snapshot is mounted */
};

/** The instant. Fields are immutable from begin to free but for those that name their guard. */
struct VmsnapSnapshot {
    const VmsnapBackend *backend;
    char *uuid;          /* of the snapshot */
    char *machine;       /* name of the machine */
    char *machine_uuid;  /* stays the same from one snapshot of a machine to the next */
    int64_t instant_ns;  /* CLOCK_REALTIME just before the instant */
    gboolean quiesced;   /* the guest's filesystems were frozen at the instant */
    char *quiesce_error; /* why they were not, although that was asked for; or NULL */
    char *checkpoint;    /* name of the one that was created at the instant, or NULL */
    char *since;         /* name of the one that changes of its first such disk count from, or NULL */
    GPtrArray *disks;    /* of VmsnapDisk, owned; in the machine's order */
    GPtrArray *files;    /* of VmsnapConfigFile, owned */
    GPtrArray *left_out; /* of VmsnapLeftOut, owned */
    GPtrArray *versions; /* of VmsnapVersion, owned */

    GMutex lock;
    char *break_reason; /* guarded by lock; NULL while the snapshot is whole; once set, never changed */
    int broken;         /* atomic; set after break_reason, so that readers need no lock */
};

/**
 * VmsnapDoneFunc:
 * @error: 0, or -errno
 *
 * Ends a read or a release. A success is reported on another thread, or after the call returned; a failure may be
 * reported on this one before it returns. Must not block; may begin further reads.
 */
typedef void (*VmsnapDoneFunc)(int error, gpointer user_data);

/**
 * VmsnapExtentsFunc:
 * @error: 0, or -errno; then @extents is NULL
 * @extents: at least one, gapless from the offset that was asked for; valid during the call only
 *
 * Ends a question for extents; called as VmsnapDoneFunc is.
 */
typedef void (*VmsnapExtentsFunc)(int error, const VmsnapExtent *extents, size_t n_extents, gpointer user_data);

/** How consistent a disk is with what wrote to it. */
typedef enum {
    VMSNAP_CONSISTENCY_CRASH,      /* as after a power failure */
    VMSNAP_CONSISTENCY_FILESYSTEM, /* the guest's filesystems were frozen */
    VMSNAP_CONSISTENCY_UNKNOWN,    /* whoever made the export knows */
} VmsnapConsistency;

/** An option of -o that a kind of source cannot do anything with. */
typedef struct {
    const char *option;
    const char *reason;
} VmsnapRefusal;

/** What people read about a kind of source. Static. */
typedef struct {
    const char *noun;    /* what one of them is: "domain" */
    const char *host;    /* who answers for it, and may be unwell: "libvirt" */
    const char *inspect; /* command that shows what it is at, and takes its name; or NULL */
} VmsnapWords;

/**
 * VmsnapBackend: what a kind of source implements. Callers use the checked functions below, never this table.
 * @words: how to speak about it
 * @refuses: options that make no sense with it, ended by one without a name; NULL for none
 * @is_foreign: somebody else has begun what it shows: nobody here knows how, and nothing of it is ended
 * @handles: whether @source is of this kind
 * @resolve: see vmsnap_source_resolve(); NULL if there are no paths in it
 * @begin: see vmsnap_snapshot_begin()
 * @start: see vmsnap_snapshot_start(); may be NULL
 * @end: see vmsnap_snapshot_end()
 * @recover: ends in the machine what @record describes, a job, a freeze, or a checkpoint that is not settled, and notes
 *   in @record what is over; blocks, within the record's timeout. Returns: FALSE with @error set if something may be
 * left
 * @free: frees what the backend added to the snapshot, and calls vmsnap_snapshot_clear()
 * @read: see vmsnap_disk_read()
 * @extents: see vmsnap_disk_extents()
 * @scratch: see vmsnap_disk_get_scratch(); may be NULL
 * @release: see vmsnap_disk_release(); may be NULL where no disk can be released
 */
struct VmsnapBackend {
    const char *name;
    VmsnapWords words;
    const VmsnapRefusal *refuses;
    gboolean is_foreign;
    gboolean (*handles)(const char *source);
    char *(*resolve)(const char *source);
    VmsnapSnapshot *(*begin)(const VmsnapBeginOptions *options, GError **error);
    gboolean (*start)(VmsnapSnapshot *snapshot, GError **error);
    gboolean (*end)(VmsnapSnapshot *snapshot, gboolean aborted, gboolean commit, GError **error);
    gboolean (*recover)(VmsnapRecord *record, GError **error);
    void (*free)(VmsnapSnapshot *snapshot);
    void (*read)(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                 gpointer user_data);
    void (*extents)(VmsnapDisk *disk, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                    VmsnapExtentsFunc done, gpointer user_data);
    gboolean (*scratch)(VmsnapDisk *disk, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes);
    void (*release)(VmsnapDisk *disk, uint64_t offset, uint64_t length, VmsnapDoneFunc done, gpointer user_data);
};

/** Returns: (transfer full): @source, with paths in it that do not depend on the current directory. */
char *vmsnap_source_resolve(const char *source);

/**
 * vmsnap_source_check_option:
 * @option: of -o, that somebody has given
 *
 * Returns: FALSE with @error set if it makes no sense with this kind of source.
 */
gboolean vmsnap_source_check_option(const char *source, const char *option, GError **error);

/** Returns: how to speak about @source. */
const VmsnapWords *vmsnap_source_get_words(const char *source);

/** Returns: how to speak about sources of the backend of that name, which may be NULL. */
const VmsnapWords *vmsnap_backend_get_words(const char *name);

/** Returns: how consistent the disks are. */
VmsnapConsistency vmsnap_snapshot_get_consistency(const VmsnapSnapshot *snapshot);

/**
 * vmsnap_snapshot_begin:
 * @options: what to begin; not kept, but for clear
 *
 * Begins the snapshot of a running machine and opens its disks. Blocks. After an error the machine is as it was, unless
 * the record says otherwise. Returns: (transfer full): the snapshot, or NULL with @error set.
 */
VmsnapSnapshot *vmsnap_snapshot_begin(const VmsnapBeginOptions *options, GError **error);

/**
 * vmsnap_snapshot_start:
 *
 * Starts the threads that answer reads and watch over the snapshot. They have the rights of the thread that calls.
 * Returns: FALSE with @error set if the system has none left; then the snapshot can only be ended.
 */
gboolean vmsnap_snapshot_start(VmsnapSnapshot *snapshot, GError **error);

/**
 * vmsnap_snapshot_end:
 * @aborted: whether somebody stopped it before the reader was done
 * @commit: whether its checkpoint is to stay, if the snapshot is whole: what was copied is safe, and the next backup
 * may rest on it. Otherwise the checkpoint is deleted
 *
 * Ends the snapshot and notes its outcome in the record. Reads and releases in flight and later ones fail with -EIO;
 * when this returns their callbacks have been called. Blocks. Returns: FALSE with @error set if the snapshot broke, if
 * its checkpoint could not be committed, or if the machine could not be left as it was: the message then says what
 * remains.
 */
gboolean vmsnap_snapshot_end(VmsnapSnapshot *snapshot, gboolean aborted, gboolean commit, GError **error);

/**
 * vmsnap_snapshot_clear_machine:
 * @fd: holds the record
 * @record: is changed as things are cleared, and written when all are
 *
 * Clears in the machine what the record tells of, and says nothing of an outcome: the snapshot may still have somebody
 * who serves it. Blocks. Returns: FALSE with @error set if something is left. It may be tried again.
 */
gboolean vmsnap_snapshot_clear_machine(int fd, VmsnapRecord *record, GError **error);

/**
 * vmsnap_snapshot_recover:
 * @fd: holds the record
 * @record: is changed as things are cleared
 *
 * Clears in the machine what a snapshot has left that nobody serves any more, if it was not ended. Blocks. Returns:
 * FALSE with @error set if something is left: the record tells what. It may be tried again.
 */
gboolean vmsnap_snapshot_recover(int fd, VmsnapRecord *record, GError **error);

/**
 * vmsnap_snapshot_remove_left:
 *
 * When all is cleared in the machine, removes the directories on this host, and then the record. Returns: FALSE with
 * @error set if something is left: then the record stays. It may be tried again.
 */
gboolean vmsnap_snapshot_remove_left(int fd, VmsnapRecord *record, GError **error);

/**
 * vmsnap_scratch_sweep:
 *
 * Removes scratch directories in the default place that are older than this boot and have no record: a record goes
 * last, unless the host crashes, which loses all records. An ordinary user's default place may be shared with other
 * hosts, and is left alone. Returns: FALSE with
 * @error set if one could not be removed.
 */
gboolean vmsnap_scratch_sweep(GError **error);

/** Frees a snapshot that has ended; NULL-safe. */
void vmsnap_snapshot_free(VmsnapSnapshot *snapshot);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(VmsnapSnapshot, vmsnap_snapshot_free)

/**
 * vmsnap_snapshot_break:
 * @format: why the snapshot is lost, in words for the user
 *
 * Declares the snapshot lost. The first reason stays. Any thread.
 */
void vmsnap_snapshot_break(VmsnapSnapshot *snapshot, const char *format, ...) G_GNUC_PRINTF(2, 3);

/** Returns: whether the snapshot is lost. Any thread; without a lock. */
gboolean vmsnap_snapshot_is_broken(const VmsnapSnapshot *snapshot);

/** Returns: (transfer full): why the snapshot is lost, or NULL while it is whole. Any thread. */
char *vmsnap_snapshot_dup_break_reason(VmsnapSnapshot *snapshot);

/**
 * vmsnap_disk_read:
 * @buffer: kept until @done is called
 * @length: more than 0; the range must lie inside the disk, and not cross a multiple of its boundary_bytes
 *
 * Reads a range of the snapshot. Does not block. Any thread.
 */
void vmsnap_disk_read(VmsnapDisk *disk, void *buffer, size_t length, uint64_t offset, VmsnapDoneFunc done,
                      gpointer user_data);

/**
 * vmsnap_disk_extents:
 * @length: more than 0 and at most 2 GiB; the range must lie inside the disk
 *
 * Asks of what kind the bytes of a range are, as far as @question goes. The answer may cover less than was asked for,
 * never more. Does not block. Any thread.
 */
void vmsnap_disk_extents(VmsnapDisk *disk, VmsnapExtentsQuestion question, uint64_t offset, uint64_t length,
                         VmsnapExtentsFunc done, gpointer user_data);

/**
 * vmsnap_disk_release:
 * @disk: one that can_release
 * @length: more than 0 and at most 1 GiB; the range must be of whole VMSNAP_RELEASE_UNIT_BYTES, and end before the last
 *   unit of the disk, even if that is a whole one: there others go on looking whether the snapshot is still kept
 *
 * Gives a range back: from the call on, reads of it may fail, and what the guest overwrites there need not be kept. To
 * fail is no harm to the snapshot. Does not block. Any thread.
 */
void vmsnap_disk_release(VmsnapDisk *disk, uint64_t offset, uint64_t length, VmsnapDoneFunc done, gpointer user_data);

/**
 * vmsnap_disk_get_scratch:
 * @ret_used_bytes: by old data of this disk
 * @ret_left_bytes: free where they are kept
 *
 * Waits for that filesystem. Any thread. Returns: FALSE if the disk has no scratch, or none any more.
 */
gboolean vmsnap_disk_get_scratch(VmsnapDisk *disk, uint64_t *ret_used_bytes, uint64_t *ret_left_bytes);

/* For backends: the parts that all snapshots share. */

/** Sets up the lock and the empty lists of @snapshot, which the backend has allocated zeroed. */
void vmsnap_snapshot_init(VmsnapSnapshot *snapshot, const VmsnapBackend *backend);

/** Frees what vmsnap_snapshot_init() made and all public fields, disks included; not @snapshot itself. */
void vmsnap_snapshot_clear(VmsnapSnapshot *snapshot);

/**
 * vmsnap_snapshot_add_file:
 * @content: (transfer full)
 */
void vmsnap_snapshot_add_file(VmsnapSnapshot *snapshot, const char *name, GBytes *content, VmsnapFileKind kind);

/** Returns: (transfer none): the file of that name, or NULL. */
const VmsnapConfigFile *vmsnap_snapshot_find_file(const VmsnapSnapshot *snapshot, const char *name);

void vmsnap_snapshot_add_left_out(VmsnapSnapshot *snapshot, const char *name, const char *reason);

/**
 * vmsnap_snapshot_add_version:
 * @version: (transfer full)
 */
void vmsnap_snapshot_add_version(VmsnapSnapshot *snapshot, const char *program, char *version);
