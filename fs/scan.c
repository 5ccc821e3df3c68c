/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A scan asks for the extents of a disk, one window a question. In the background they are asked in the order of the
 * disk. Those of content one at a time: QEMU answers on the thread that also serves the guest, and gets its breath only
 * on our way back with the next one. With two under way, a badly fragmented image starves the guest. Those of changes
 * are in QEMU's memory, and it is the way that takes time. Whoever needs a window that is not known yet has it asked
 * for at once, or joins the question under way.
 *
 * Answers come on threads of the backend. The lock guards the questions and those who wait for them; it is never held
 * while a backend or a waiter is called, since both may come back here.
 */
#include "scan.h"

#include <stdatomic.h>

#define MAX_BACKGROUND_CHANGES 16

typedef struct {
    VmsnapScanFunc func;
    gpointer user_data;
    int64_t deadline_us;
} Waiter;

typedef struct {
    VmsnapScan *scan;
    uint64_t index;
    VmsnapExtentWindow *window; /* used by one answer at a time */
    GArray *waiters;            /* of Waiter; guarded by the scan's lock */
    gboolean background;        /* goes on with the next window; guarded by the scan's lock */
} Question;

struct VmsnapScan {
    VmsnapDisk *disk;
    VmsnapExtentsQuestion question;
    const VmsnapExtentMap *changes; /* not owned; or NULL; immutable once started */
    VmsnapExtentMap *map;
    _Atomic gboolean failed; /* set before the window that it is about is known */
    GMutex lock;
    GHashTable *questions; /* of window index to Question, owned; guarded by lock */
    GArray *waiters;       /* of Waiter, for the whole map; guarded by lock */
    uint64_t next_window;  /* the background has come up to here; guarded by lock */
};

static void question_ask(Question *question);

static void question_free(gpointer data) {
    Question *question = data;
    vmsnap_extent_window_free(question->window);
    g_array_unref(question->waiters);
    g_free(question);
}

VmsnapScan *vmsnap_scan_new(VmsnapDisk *disk, VmsnapExtentsQuestion question, size_t max_memory_bytes) {
    VmsnapScan *scan = g_new0(VmsnapScan, 1);
    scan->disk = disk;
    scan->question = question;
    scan->map = vmsnap_extent_map_new(disk->size_bytes, max_memory_bytes);
    g_mutex_init(&scan->lock);
    scan->questions = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, question_free);
    scan->waiters = g_array_new(FALSE, FALSE, sizeof(Waiter));
    return scan;
}

void vmsnap_scan_free(VmsnapScan *scan) {
    if (!scan)
        return;
    g_assert(g_hash_table_size(scan->questions) == 0);
    g_hash_table_unref(scan->questions);
    g_array_unref(scan->waiters);
    vmsnap_extent_map_free(scan->map);
    g_mutex_clear(&scan->lock);
    g_free(scan);
}

const VmsnapExtentMap *vmsnap_scan_get_map(const VmsnapScan *scan) {
    return scan->map;
}

VmsnapExtentsQuestion vmsnap_scan_get_question(const VmsnapScan *scan) {
    return scan->question;
}

const VmsnapDisk *vmsnap_scan_get_disk(const VmsnapScan *scan) {
    return scan->disk;
}

gboolean vmsnap_scan_is_complete(const VmsnapScan *scan) {
    return vmsnap_extent_map_get_known_bytes(scan->map) == scan->disk->size_bytes;
}

gboolean vmsnap_scan_has_failed(const VmsnapScan *scan) {
    return atomic_load(&scan->failed);
}

static Question *question_new_locked(VmsnapScan *scan, uint64_t index) {
    Question *question = g_new0(Question, 1);
    question->scan = scan;
    question->index = index;
    question->window = vmsnap_extent_window_new(scan->map, index);
    question->waiters = g_array_new(FALSE, FALSE, sizeof(Waiter));
    g_hash_table_insert(scan->questions, &question->index, question);
    return question;
}

static gboolean window_is_clean(const VmsnapScan *scan, uint64_t index) {
    if (!scan->changes)
        return FALSE;
    VmsnapExtentKind kind = VMSNAP_EXTENT_DIRTY;
    uint64_t length = 0;
    gboolean known = vmsnap_extent_map_lookup(scan->changes, index * VMSNAP_EXTENT_MAP_WINDOW_BYTES, &kind, &length);
    return known && kind == VMSNAP_EXTENT_CLEAN && length == vmsnap_extent_map_get_window_length(scan->map, index);
}

static void window_take_for_data(VmsnapScan *scan, uint64_t index) {
    VmsnapExtentWindow *window = vmsnap_extent_window_new(scan->map, index);
    vmsnap_extent_window_append(window, VMSNAP_EXTENT_DATA, VMSNAP_EXTENT_MAP_WINDOW_BYTES);
    vmsnap_extent_map_publish(scan->map, window);
}

/* Returns: the question for the next window that nobody has asked for, or NULL. */
static Question *scan_next_locked(VmsnapScan *scan) {
    for (; scan->next_window < vmsnap_extent_map_get_window_count(scan->map); scan->next_window++) {
        uint64_t index = scan->next_window;
        if (vmsnap_extent_map_has_window(scan->map, index) || g_hash_table_contains(scan->questions, &index))
            continue;
        if (window_is_clean(scan, index)) {
            window_take_for_data(scan, index);
            continue;
        }
        Question *question = question_new_locked(scan, index);
        question->background = TRUE;
        return question;
    }
    return NULL;
}

/* Moves those to @ret_due who wait for the whole map and need not wait any longer. */
static void scan_take_due_locked(VmsnapScan *scan, GArray *ret_due) {
    gboolean idle = vmsnap_scan_is_complete(scan) || g_hash_table_size(scan->questions) == 0;
    int64_t now_us = g_get_monotonic_time();
    for (guint i = scan->waiters->len; i-- > 0;) {
        Waiter waiter = g_array_index(scan->waiters, Waiter, i);
        if (!idle && now_us < waiter.deadline_us)
            continue;
        g_array_append_val(ret_due, waiter);
        g_array_remove_index_fast(scan->waiters, i);
    }
}

static void waiters_call(const GArray *waiters) {
    for (guint i = 0; i < waiters->len; i++) {
        const Waiter *waiter = &g_array_index(waiters, Waiter, i);
        waiter->func(waiter->user_data);
    }
}

/* An answer has come that does not end its question. */
static void scan_call_due(VmsnapScan *scan) {
    g_autoptr(GArray) due = g_array_new(FALSE, FALSE, sizeof(Waiter));
    g_mutex_lock(&scan->lock);
    scan_take_due_locked(scan, due);
    g_mutex_unlock(&scan->lock);
    waiters_call(due);
}

/*
 * After an error the background goes no further: the snapshot is lost or the server does not answer such questions,
 * and a chain of failures that are reported before the call returns would only nest.
 */
static void question_finish(Question *question, gboolean failed) {
    VmsnapScan *scan = question->scan;
    if (failed)
        atomic_store(&scan->failed, TRUE);
    vmsnap_extent_map_publish(scan->map, g_steal_pointer(&question->window));

    g_mutex_lock(&scan->lock);
    g_autoptr(GArray) due = g_array_ref(question->waiters);
    gboolean background = question->background && !failed;
    g_hash_table_remove(scan->questions, &question->index);
    Question *next = background ? scan_next_locked(scan) : NULL;
    scan_take_due_locked(scan, due);
    g_mutex_unlock(&scan->lock);

    if (next)
        question_ask(next);
    waiters_call(due);
}

static void question_answered(int error, const VmsnapExtent *extents, size_t n_extents, gpointer user_data) {
    Question *question = user_data;
    uint64_t missing_before = vmsnap_extent_window_get_missing(question->window);
    for (size_t i = 0; i < n_extents; i++)
        vmsnap_extent_window_append(question->window, extents[i].kind, extents[i].length_bytes);
    /* An answer that says nothing would be asked for again for ever. */
    gboolean failed = error != 0 || vmsnap_extent_window_get_missing(question->window) == missing_before;
    if (failed)
        vmsnap_extent_window_append(question->window, VMSNAP_EXTENT_DATA, VMSNAP_EXTENT_MAP_WINDOW_BYTES);

    if (vmsnap_extent_window_get_missing(question->window) == 0) {
        question_finish(question, failed);
        return;
    }
    scan_call_due(question->scan);
    question_ask(question);
}

static void question_ask(Question *question) {
    VmsnapScan *scan = question->scan;
    uint64_t end = question->index * VMSNAP_EXTENT_MAP_WINDOW_BYTES +
                   vmsnap_extent_map_get_window_length(scan->map, question->index);
    uint64_t missing = vmsnap_extent_window_get_missing(question->window);
    vmsnap_disk_extents(scan->disk, scan->question, end - missing, missing, question_answered, question);
}

void vmsnap_scan_start(VmsnapScan *scan, const VmsnapExtentMap *changes) {
    unsigned n_questions = scan->question == VMSNAP_EXTENTS_OF_CHANGES ? MAX_BACKGROUND_CHANGES : 1;
    scan->changes = changes;
    for (unsigned i = 0; i < n_questions; i++) {
        g_mutex_lock(&scan->lock);
        Question *question = scan_next_locked(scan);
        g_mutex_unlock(&scan->lock);
        if (!question)
            return;
        question_ask(question);
    }
}

void vmsnap_scan_resolve(VmsnapScan *scan, uint64_t offset, VmsnapScanFunc func, gpointer user_data) {
    uint64_t index = offset / VMSNAP_EXTENT_MAP_WINDOW_BYTES;
    Waiter waiter = {.func = func, .user_data = user_data};

    g_mutex_lock(&scan->lock);
    gboolean known = vmsnap_extent_map_has_window(scan->map, index);
    Question *question = g_hash_table_lookup(scan->questions, &index);
    gboolean is_new = !known && !question;
    if (is_new)
        question = question_new_locked(scan, index);
    if (!known)
        g_array_append_val(question->waiters, waiter);
    g_mutex_unlock(&scan->lock);

    if (known)
        func(user_data);
    else if (is_new)
        question_ask(question);
}

void vmsnap_scan_wait(VmsnapScan *scan, int64_t deadline_us, VmsnapScanFunc func, gpointer user_data) {
    Waiter waiter = {.func = func, .user_data = user_data, .deadline_us = deadline_us};
    g_mutex_lock(&scan->lock);
    gboolean idle = vmsnap_scan_is_complete(scan) || g_hash_table_size(scan->questions) == 0;
    if (!idle)
        g_array_append_val(scan->waiters, waiter);
    g_mutex_unlock(&scan->lock);
    if (idle)
        func(user_data);
}
