/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What options do not go together, or not with the source. Each by itself has been read by options.c. */
#include "option_rules.h"

#include "vmsnap/error.h"

/* Otherwise the rules below would tell what to add to an option that is of no use here. */
static gboolean check_source(const VmsnapOptions *options, GError **error) {
    for (guint i = 0; options->source && i < options->given->len; i++)
        if (!vmsnap_source_check_option(options->source, g_ptr_array_index(options->given, i), error))
            return FALSE;
    return TRUE;
}

/* Options that make no sense together are more likely a mistake than meant. */
typedef struct {
    gboolean is_wrong;
    const char *option;
    const char *reason;
} Rule;

static gboolean rules_check(const Rule *rules, size_t n_rules, GError **error) {
    for (size_t i = 0; i < n_rules; i++) {
        if (!rules[i].is_wrong)
            continue;
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_USAGE, "failed to use option '%s': %s", rules[i].option,
                    rules[i].reason);
        return FALSE;
    }
    return TRUE;
}

static gboolean check_checkpoint(const VmsnapOptions *options, GError **error) {
    gboolean has_checkpoint = options->incremental || options->checkpoint;
    gboolean is_explicit = options->commit == VMSNAP_COMMIT_EXPLICIT;
    const Rule rules[] = {
        {options->incremental && options->checkpoint, "checkpoint",
         "incremental names its checkpoints itself; use checkpoint= with since="},
        {options->incremental && options->since, "since",
         "incremental finds it out by itself; use since= with checkpoint="},
        {options->since && g_strcmp0(options->checkpoint, options->since) == 0, "checkpoint",
         "it is the name of since=, too; choose another"},
        {options->keep_checkpoints && !has_checkpoint, "keep_checkpoints",
         "there is no new one; add incremental or checkpoint="},
        {options->has_commit && !has_checkpoint, "commit", "there is no checkpoint; add incremental or checkpoint="},
        {is_explicit && options->read_only, "commit",
         "the order is written into the mount, which ro prevents; drop one of them"},
    };
    return rules_check(rules, G_N_ELEMENTS(rules), error);
}

static gboolean check_format(const VmsnapOptions *options, GError **error) {
    gboolean is_qcow2 = options->format.format == &vmsnap_format_qcow2;
    gboolean is_raw = options->format.format == &vmsnap_format_raw;
    gboolean counts_changes = options->incremental || options->since;
    const Rule rules[] = {
        {options->has_cluster_size && !is_qcow2, "cluster_size",
         "only format=qcow2 has clusters to choose; use format=qcow2"},
        {counts_changes && !options->format.format->shows_changes, options->incremental ? "incremental" : "since",
         "an archive is of whole disks; use format=raw or format=qcow2"},
        {options->backing && !is_qcow2, "backing", "other formats have no backing file; use format=qcow2"},
        {options->backing && !counts_changes, "backing", "a whole disk has no backing file; add incremental or since="},
        {options->format.only_changed && !is_raw, "only_changed",
         "it is for format=raw; format=qcow2 holds only that anyway"},
        {options->format.only_changed && !counts_changes, "only_changed",
         "since when is not said; add incremental or since="},
    };
    return rules_check(rules, G_N_ELEMENTS(rules), error);
}

static gboolean check_quiesce(const VmsnapOptions *options, GError **error) {
    const Rule rules[] = {
        {options->agent && options->quiesce == VMSNAP_QUIESCE_NO, "agent",
         "nothing is asked of it; add quiesce=try or quiesce=require"},
    };
    return rules_check(rules, G_N_ELEMENTS(rules), error);
}

gboolean vmsnap_option_rules_check(const VmsnapOptions *options, GError **error) {
    return check_source(options, error) && check_checkpoint(options, error) && check_format(options, error) &&
           check_quiesce(options, error);
}
