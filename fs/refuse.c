/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The kernel would refuse all changes by itself in a mount that is read-only; but then the files in .vmsnap/ that take
 * orders could not be written either.
 */
#define FUSE_USE_VERSION 312
#include "refuse.h"

#include <errno.h>
#include <fuse_lowlevel.h>

static void refuse(fuse_req_t request) {
    (void)fuse_reply_err(request, EROFS);
}

static void refuse_mknod(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode, dev_t device) {
    (void)parent, (void)name, (void)mode, (void)device;
    refuse(request);
}

static void refuse_mkdir(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode) {
    (void)parent, (void)name, (void)mode;
    refuse(request);
}

static void refuse_remove(fuse_req_t request, fuse_ino_t parent, const char *name) {
    (void)parent, (void)name;
    refuse(request);
}

static void refuse_symlink(fuse_req_t request, const char *target, fuse_ino_t parent, const char *name) {
    (void)target, (void)parent, (void)name;
    refuse(request);
}

static void refuse_rename(fuse_req_t request, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                          const char *new_name, unsigned flags) {
    (void)parent, (void)name, (void)new_parent, (void)new_name, (void)flags;
    refuse(request);
}

static void refuse_link(fuse_req_t request, fuse_ino_t id, fuse_ino_t parent, const char *name) {
    (void)id, (void)parent, (void)name;
    refuse(request);
}

static void refuse_create(fuse_req_t request, fuse_ino_t parent, const char *name, mode_t mode,
                          struct fuse_file_info *file) {
    (void)parent, (void)name, (void)mode, (void)file;
    refuse(request);
}

static void refuse_setxattr(fuse_req_t request, fuse_ino_t id, const char *name, const char *value, size_t size,
                            int flags) {
    (void)id, (void)name, (void)value, (void)size, (void)flags;
    refuse(request);
}

static void refuse_removexattr(fuse_req_t request, fuse_ino_t id, const char *name) {
    (void)id, (void)name;
    refuse(request);
}

void vmsnap_refuse_changes(struct fuse_lowlevel_ops *operations) {
    operations->mknod = refuse_mknod;
    operations->mkdir = refuse_mkdir;
    operations->unlink = refuse_remove;
    operations->rmdir = refuse_remove;
    operations->symlink = refuse_symlink;
    operations->rename = refuse_rename;
    operations->link = refuse_link;
    operations->create = refuse_create;
    operations->setxattr = refuse_setxattr;
    operations->removexattr = refuse_removexattr;
}
