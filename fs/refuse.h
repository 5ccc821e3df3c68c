/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The FUSE operations that would change something. */
#pragma once

struct fuse_lowlevel_ops;

/** Sets all of them in @operations so that they fail with EROFS. */
void vmsnap_refuse_changes(struct fuse_lowlevel_ops *operations);
