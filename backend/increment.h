/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which disks of a snapshot are incremental, from which checkpoint, and which new one there is to be. Pure: what there
 * is in the machine is given. Where checkpoints are named, all disks must fit; where it is left to vmsnap, a disk that
 * does not is full, and says why.
 */
#pragma once

#include "checkpoint.h"

/**
 * vmsnap_increment_plan:
 * @checkpoints: (element-type VmsnapCheckpoint): of the machine, the oldest first
 * @selected: (element-type VmsnapDomainDisk): the disks of @snapshot, in the same order
 * @snapshot: gets checkpoint, its disks since and what belongs to that, or full_reason
 *
 * Returns: FALSE with @error set if what was asked for cannot be.
 */
gboolean vmsnap_increment_plan(const VmsnapBeginOptions *options, const GPtrArray *checkpoints,
                               const GPtrArray *selected, VmsnapSnapshot *snapshot, GError **error);

/**
 * vmsnap_increment_drop:
 * @message: what is wrong; if it names disks, it is about these, and else about all
 *
 * Lets disks be full whose changes cannot be had after all. Returns: whether there was such a disk.
 */
gboolean vmsnap_increment_drop(VmsnapSnapshot *snapshot, const char *message);

/**
 * vmsnap_increment_untrack:
 * @selected: as for vmsnap_increment_plan()
 * @message: why there can be no checkpoint; if it names the image of a disk, of that one only
 *
 * Lets disks be full that turn out not to keep track of changes, and leaves them out of the new checkpoint, or gives
 * that up if none is left. Returns: FALSE if @message is about something else.
 */
gboolean vmsnap_increment_untrack(VmsnapSnapshot *snapshot, const GPtrArray *selected, const char *message);

/**
 * vmsnap_increment_check_sizes:
 *
 * Compares the disks, whose sizes are known by now, with what they were at the checkpoint: of one that was resized,
 * nobody tells what has changed behind its old end. Returns: FALSE with @error set if there is one that must not be
 * full.
 */
gboolean vmsnap_increment_check_sizes(const VmsnapBeginOptions *options, VmsnapSnapshot *snapshot, GError **error);
