/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One function a FUSE operation: it finds the node and replies, or starts what replies later (fs/session.c says which
 * threads). Nothing can be changed but by an order, which is text written into a live file that takes it; the
 * operations that would are in refuse.c.
 */
#define FUSE_USE_VERSION 312
#include "ops.h"

#include "opener.h"
#include "read.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* The tree never changes while it is mounted. */
#define FOREVER_S 86400.0
/* So long after the mount, stat(2) waits for the map of a disk; later, it counts what is unknown as allocated. */
#define BLOCK_COUNT_WAIT_US INT64_C(2000000)
/* st_blksize: what cp, cat and others take for their buffer. As large as one FUSE request can be. */
#define PREFERRED_READ_BYTES (1 << 20)
#define STATFS_BLOCK_BYTES 4096
#define MAX_BACKGROUND_REQUESTS 64
/* Of files that take orders. */
#define ORDER_MODE 0600
#define MAX_ORDER_BYTES 4096

void vmsnap_ops_init(VmsnapOps *ops, VmsnapView *view, const VmsnapSessionOptions *options) {
    ops->view = view;
    ops->open_files = vmsnap_open_files_new();
    ops->uid = options->uid;
    ops->gid = options->gid;
    ops->file_mode = options->file_mode;
    ops->block_count_deadline_us = g_get_monotonic_time() + BLOCK_COUNT_WAIT_US;
    ops->directory_mode = options->file_mode | (options->file_mode & 0444) >> 2;
}

void vmsnap_ops_clear(VmsnapOps *ops) {
    vmsnap_open_files_free(ops->open_files);
}

static const VmsnapOps *request_ops(fuse_req_t request) {
    return fuse_req_userdata(request);
}

/* The kernel only sends numbers that a look-up gave it, and a node is never forgotten. */
static const VmsnapNode *request_node(fuse_req_t request, fuse_ino_t id) {
    const VmsnapNode *node = vmsnap_tree_get(request_ops(request)->view->tree, id);
    g_assert(node);
    return node;
}

static void op_init(void *user_data, struct fuse_conn_info *connection) {
    const VmsnapOps *ops = user_data;
    connection->max_background = MAX_BACKGROUND_REQUESTS;
    connection->congestion_threshold = MAX_BACKGROUND_REQUESTS;
    connection->max_readahead = ops->view->resources.releases ? 0 : PREFERRED_READ_BYTES;
    connection->want |= connection->capable & FUSE_CAP_PARALLEL_DIROPS;
    /* Content never changes. Otherwise the kernel asks for attributes before each read, and those may have to wait. */
    connection->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    ops->ready(ops->ready_data);
}

static void fill_file_size(const VmsnapNode *node, struct stat *ret_attributes) {
    uint64_t allocated_bytes = 0;
    if (node->layout) {
        ret_attributes->st_size = (off_t)node->layout->size_bytes;
        allocated_bytes = vmsnap_layout_get_allocated_bytes(node->layout);
    } else if (!node->map || vmsnap_scan_is_complete(node->map->scan)) {
        g_autoptr(GBytes) content = node->generate(node->live_data);
        allocated_bytes = g_bytes_get_size(content);
        ret_attributes->st_size = (off_t)allocated_bytes;
    }
    ret_attributes->st_blocks = (blkcnt_t)((allocated_bytes + 511) / 512);
}

static struct timespec timespec_of(int64_t time_ns) {
    return (struct timespec){.tv_sec = time_ns / 1000000000, .tv_nsec = time_ns % 1000000000};
}

static void fill_attributes(const VmsnapOps *ops, const VmsnapNode *node, struct stat *ret_attributes) {
    struct timespec instant = timespec_of(ops->view->snapshot->instant_ns);
    struct timespec modified = node->modified_ns ? timespec_of(node->modified_ns) : instant;
    gboolean directory = vmsnap_node_is_directory(node);
    *ret_attributes = (struct stat){
        .st_ino = node->inode,
        .st_mode = directory ? S_IFDIR | ops->directory_mode : S_IFREG | ops->file_mode,
        .st_nlink = directory ? 2 : 1,
        .st_uid = ops->uid,
        .st_gid = ops->gid,
        .st_blksize = PREFERRED_READ_BYTES,
        .st_atim = instant,
        .st_mtim = modified,
        .st_ctim = modified,
    };
    if (!directory)
        fill_file_size(node, ret_attributes);
    if (node->store) {
        ret_attributes->st_mode = S_IFREG | ORDER_MODE;
        ret_attributes->st_uid = geteuid();
        ret_attributes->st_gid = getegid();
    }
}

static gboolean attributes_are_final(const VmsnapNode *node) {
    if (node->generate)
        return FALSE;
    return !node->layout || !node->layout->disk || vmsnap_scan_is_complete(node->layout->disk->scan);
}

static void op_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
    const VmsnapNode *directory = request_node(request, parent);
    struct fuse_entry_param entry = {.entry_timeout = FOREVER_S};
    const VmsnapNode *node = vmsnap_node_is_directory(directory) ? vmsnap_tree_lookup(directory, name) : NULL;
    if (node) {
        entry.ino = node->id;
        entry.attr_timeout = attributes_are_final(node) ? FOREVER_S : 0;
        fill_attributes(request_ops(request), node, &entry.attr);
    }
    (void)fuse_reply_entry(request, &entry);
}

typedef struct {
    fuse_req_t request;
    const VmsnapNode *node;
} AttributesRequest;

static void attributes_reply(fuse_req_t request, const VmsnapNode *node) {
    struct stat attributes;
    gboolean final = attributes_are_final(node);
    fill_attributes(request_ops(request), node, &attributes);
    (void)fuse_reply_attr(request, &attributes, final ? FOREVER_S : 0);
}

static void attributes_known(gpointer user_data) {
    AttributesRequest *waiting = user_data;
    attributes_reply(waiting->request, waiting->node);
    g_free(waiting);
}

/* st_blocks tells tar, cp and rsync that a file has holes: worth waiting for, but not for ever. */
static void op_getattr(fuse_req_t request, fuse_ino_t id, struct fuse_file_info *file) {
    (void)file;
    const VmsnapNode *node = request_node(request, id);
    if (attributes_are_final(node) || node->generate) {
        attributes_reply(request, node);
        return;
    }
    AttributesRequest *waiting = g_new(AttributesRequest, 1);
    *waiting = (AttributesRequest){.request = request, .node = node};
    vmsnap_scan_wait(node->layout->disk->scan, request_ops(request)->block_count_deadline_us, attributes_known,
                     waiting);
}

static VmsnapOpenFile *open_file_of(const struct fuse_file_info *file) {
    return (VmsnapOpenFile *)(uintptr_t)file->fh;
}

/* A live file is made at open, so that one reader sees one state of it. */
static void open_reply(fuse_req_t request, const VmsnapNode *node, struct fuse_file_info *file) {
    const VmsnapOps *ops = request_ops(request);
    VmsnapOpenFile *open_file = vmsnap_open_files_open(ops->open_files, node, &ops->view->resources);
    file->fh = (uintptr_t)open_file;
    file->noflush = 1;
    /* Content never changes; without keep_cache, the kernel would drop what others have cached of it. */
    file->keep_cache = node->layout != NULL;
    /* What is read once must not be read by the kernel for itself. */
    file->direct_io =
        !node->layout || ops->view->resources.releases || vmsnap_opener_reads_large_blocks(fuse_req_ctx(request)->pid);
    if (fuse_reply_open(request, file) != 0)
        vmsnap_open_files_close(ops->open_files, open_file);
}

typedef struct {
    fuse_req_t request;
    const VmsnapNode *node;
    struct fuse_file_info file;
} OpenRequest;

static void open_mapped(gpointer user_data) {
    OpenRequest *waiting = user_data;
    open_reply(waiting->request, waiting->node, &waiting->file);
    g_free(waiting);
}

static void op_open(fuse_req_t request, fuse_ino_t id, struct fuse_file_info *file) {
    const VmsnapNode *node = request_node(request, id);
    if (((file->flags & O_ACCMODE) != O_RDONLY || (file->flags & O_TRUNC)) && !node->store) {
        (void)fuse_reply_err(request, EROFS);
        return;
    }
    if (!node->map) {
        open_reply(request, node, file);
        return;
    }
    OpenRequest *waiting = g_new(OpenRequest, 1);
    *waiting = (OpenRequest){.request = request, .node = node, .file = *file};
    vmsnap_scan_wait(node->map->scan, G_MAXINT64, open_mapped, waiting);
}

static void op_release(fuse_req_t request, fuse_ino_t id, struct fuse_file_info *file) {
    (void)id;
    vmsnap_open_files_close(request_ops(request)->open_files, open_file_of(file));
    (void)fuse_reply_err(request, 0);
}

/*
 * Who is killed while he waits for an answer that is under way waits on, and dies with it: the kernel takes the answer,
 * but it has told of the signal before. Others than those that kill are told of, too. Then somebody may have the data
 * and they count as not handed out, which only keeps them longer.
 */
static gboolean read_reply(fuse_req_t request, const struct iovec *pieces, guint n_pieces) {
    gboolean interrupted = fuse_req_interrupted(request);
    return fuse_reply_iov(request, pieces, (int)n_pieces) == 0 && !interrupted;
}

static gboolean read_done(int error, const struct iovec *pieces, guint n_pieces, gpointer user_data) {
    fuse_req_t request = user_data;
    if (!error)
        return read_reply(request, pieces, n_pieces);
    vmsnap_view_note_read_error(request_ops(request)->view);
    (void)fuse_reply_err(request, -error);
    return FALSE;
}

static void op_read(fuse_req_t request, fuse_ino_t id, size_t length, off_t offset, struct fuse_file_info *file) {
    (void)id;
    const VmsnapOpenFile *open_file = open_file_of(file);
    if (open_file->reader) {
        vmsnap_reader_read(open_file->reader, (uint64_t)offset, length, read_done, request);
        return;
    }
    size_t size;
    const char *content = g_bytes_get_data(open_file->content, &size);
    size_t start = MIN((size_t)offset, size);
    (void)fuse_reply_buf(request, content + start, MIN(length, size - start));
}

/* An order is given by one write(2), as the shell's echo does it. */
static void op_write(fuse_req_t request, fuse_ino_t id, const char *data, size_t length, off_t offset,
                     struct fuse_file_info *file) {
    (void)offset;
    (void)file;
    const VmsnapNode *node = request_node(request, id);
    if (length > MAX_ORDER_BYTES) {
        (void)fuse_reply_err(request, EFBIG);
        return;
    }
    g_autofree char *text = g_strndup(data, length);
    int error = node->store(g_strchomp(text), node->live_data);
    if (error)
        (void)fuse_reply_err(request, -error);
    else
        (void)fuse_reply_write(request, length);
}

/* To empty a file that takes orders is what comes before one. */
static void op_setattr(fuse_req_t request, fuse_ino_t id, struct stat *attributes, int to_set,
                       struct fuse_file_info *file) {
    (void)attributes;
    (void)file;
    const VmsnapNode *node = request_node(request, id);
    if (node->store && to_set == FUSE_SET_ATTR_SIZE)
        attributes_reply(request, node);
    else
        (void)fuse_reply_err(request, EROFS);
}

static void seek_done(int error, uint64_t offset, gpointer user_data) {
    fuse_req_t request = user_data;
    if (error)
        (void)fuse_reply_err(request, -error);
    else
        (void)fuse_reply_lseek(request, (off_t)offset);
}

static void op_lseek(fuse_req_t request, fuse_ino_t id, off_t offset, int whence, struct fuse_file_info *file) {
    (void)file;
    const VmsnapNode *node = request_node(request, id);
    if (node->layout)
        vmsnap_layout_seek(node->layout, (uint64_t)offset, whence, seek_done, request);
    else
        (void)fuse_reply_err(request, EINVAL);
}

static gboolean add_entry(fuse_req_t request, GByteArray *entries, size_t max_bytes, const char *name,
                          const VmsnapNode *node, off_t next) {
    struct stat attributes = {.st_ino = node->inode, .st_mode = vmsnap_node_is_directory(node) ? S_IFDIR : S_IFREG};
    size_t length = fuse_add_direntry(request, NULL, 0, name, NULL, 0);
    guint end = entries->len;
    if (end + length > max_bytes)
        return FALSE;
    g_byte_array_set_size(entries, end + (guint)length);
    (void)fuse_add_direntry(request, (char *)entries->data + end, length, name, &attributes, next);
    return TRUE;
}

/* Offset 0 is ".", 1 is "..", and the children follow; a hidden one keeps its place and is passed over. */
static void op_readdir(fuse_req_t request, fuse_ino_t id, size_t max_bytes, off_t offset, struct fuse_file_info *file) {
    (void)file;
    const VmsnapNode *node = request_node(request, id);
    g_autoptr(GByteArray) entries = g_byte_array_new();
    gboolean fits = TRUE;
    if (offset <= 0)
        fits = add_entry(request, entries, max_bytes, ".", node, 1);
    if (offset <= 1 && fits)
        fits = add_entry(request, entries, max_bytes, "..", node->parent, 2);
    for (guint i = offset > 2 ? (guint)offset - 2 : 0; i < node->children->len && fits; i++) {
        const VmsnapNode *child = g_ptr_array_index(node->children, i);
        if (!child->hidden)
            fits = add_entry(request, entries, max_bytes, child->name, child, (off_t)i + 3);
    }
    (void)fuse_reply_buf(request, (const char *)entries->data, entries->len);
}

static void op_statfs(fuse_req_t request, fuse_ino_t id) {
    (void)id;
    const VmsnapTree *tree = request_ops(request)->view->tree;
    struct statvfs filesystem = {
        .f_bsize = STATFS_BLOCK_BYTES,
        .f_frsize = STATFS_BLOCK_BYTES,
        .f_blocks = (vmsnap_tree_total_bytes(tree) + STATFS_BLOCK_BYTES - 1) / STATFS_BLOCK_BYTES,
        .f_files = vmsnap_tree_count(tree),
        .f_namemax = NAME_MAX,
    };
    (void)fuse_reply_statfs(request, &filesystem);
}

static const char *attribute_value(const VmsnapSnapshot *snapshot, const VmsnapNode *node, const char *name) {
    if (g_str_equal(name, "user.vmsnap.uuid"))
        return snapshot->uuid;
    if (g_str_equal(name, "user.vmsnap.disk"))
        return node->disk ? node->disk->name : NULL;
    if (g_str_equal(name, "user.vmsnap.source"))
        return node->disk ? node->disk->source : snapshot->machine;
    return NULL;
}

/* xattr(7): a size of 0 asks how much room the value needs. */
static void reply_sized(fuse_req_t request, const char *value, size_t length, size_t room) {
    if (room == 0)
        (void)fuse_reply_xattr(request, length);
    else if (room < length)
        (void)fuse_reply_err(request, ERANGE);
    else
        (void)fuse_reply_buf(request, value, length);
}

static void op_getxattr(fuse_req_t request, fuse_ino_t id, const char *name, size_t room) {
    const VmsnapSnapshot *snapshot = request_ops(request)->view->snapshot;
    const char *value = attribute_value(snapshot, request_node(request, id), name);
    if (value)
        reply_sized(request, value, strlen(value), room);
    else
        (void)fuse_reply_err(request, ENODATA);
}

static void op_listxattr(fuse_req_t request, fuse_ino_t id, size_t room) {
    static const char *const names[] = {"user.vmsnap.uuid", "user.vmsnap.disk", "user.vmsnap.source"};
    const VmsnapSnapshot *snapshot = request_ops(request)->view->snapshot;
    const VmsnapNode *node = request_node(request, id);
    g_autoptr(GString) list = g_string_new(NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
        if (attribute_value(snapshot, node, names[i]))
            g_string_append_len(list, names[i], (gssize)strlen(names[i]) + 1);
    reply_sized(request, list->str, list->len, room);
}

const struct fuse_lowlevel_ops vmsnap_fuse_operations = {
    .init = op_init,
    .lookup = op_lookup,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .release = op_release,
    .lseek = op_lseek,
    .readdir = op_readdir,
    .statfs = op_statfs,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
};
