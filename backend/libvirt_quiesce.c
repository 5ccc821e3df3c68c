/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libvirt's calls to the guest agent cannot be cancelled, and an agent may answer late or never. So a thread makes
 * them: it freezes, waits until it is told to thaw or until time is up, and thaws, again and again until that works.
 * Nobody waits for it without a limit. If it never comes back, it keeps itself alive, and the owner record says that
 * the guest may be frozen.
 */
#include "libvirt_quiesce.h"

#include "libvirt_domain.h"
#include "vmsnap/thread.h"

#define THAW_RETRY_US 500000
#define N_SETTLING_THAWS 20
/* For an agent that is just answering. */
#define FREE_WAIT_MS 500

typedef enum {
    FREEZING,
    FROZEN,
    LOST,     /* perhaps frozen: the agent was lost meanwhile */
    THAWED,   /* as asked */
    EXPIRED,  /* thawed, since time was up */
    NOT_DONE, /* never frozen */
} State;

struct VmsnapQuiesce {
    virDomainPtr domain; /* owned */
    unsigned timeout_ms;

    GMutex lock;
    GCond changed;
    int references; /* these are guarded by lock: of the owner, and of the thread */
    State state;
    gboolean release; /* the owner wants it thawed */
    GError *error;    /* owned; of the freeze, or of the last try to thaw */
};

/*
 * On a connection of its own. Those who share one take turns at serving it, and libvirt (9.0) may forget to wake the
 * one whose turn it is when another has something to send: then that waits until the agent answers.
 */
static virDomainPtr find_for_thread(virDomainPtr domain, GError **error) {
    g_autofree char *uri = virConnectGetURI(virDomainGetConnect(domain));
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    (void)virDomainGetUUIDString(domain, uuid);
    g_autoptr(GError) find_error = NULL;
    virDomainPtr found = vmsnap_libvirt_find_again(NULL, uri, uuid, &find_error);
    if (!found)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to freeze the filesystems of domain '%s': %s",
                    virDomainGetName(domain), find_error ? find_error->message : "it was stopped");
    return found;
}

static gint64 deadline_in(unsigned timeout_ms) {
    return g_get_monotonic_time() + (gint64)timeout_ms * 1000;
}

/* Called with the lock, which it gives back. */
static void quiesce_unref(VmsnapQuiesce *quiesce) {
    gboolean last = --quiesce->references == 0;
    g_mutex_unlock(&quiesce->lock);
    if (!last)
        return;
    if (quiesce->domain)
        (void)virDomainFree(quiesce->domain);
    g_clear_error(&quiesce->error);
    g_cond_clear(&quiesce->changed);
    g_mutex_clear(&quiesce->lock);
    g_free(quiesce);
}

static void quiesce_set_state(VmsnapQuiesce *quiesce, State state) {
    quiesce->state = state;
    g_cond_broadcast(&quiesce->changed);
}

/* The next try uses a connection of its own if the old one is dead. */
static gboolean thaw_once(VmsnapQuiesce *quiesce, GError **error) {
    virConnectPtr connection = virDomainGetConnect(quiesce->domain);
    g_autofree char *uri = virConnectGetURI(connection);
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    (void)virDomainGetUUIDString(quiesce->domain, uuid);
    return vmsnap_libvirt_thaw(connection, uri, uuid, error);
}

static void thaw_until_done(VmsnapQuiesce *quiesce) {
    for (;;) {
        g_autoptr(GError) error = NULL;
        if (thaw_once(quiesce, &error))
            return;
        g_mutex_lock(&quiesce->lock);
        g_clear_error(&quiesce->error);
        quiesce->error = g_steal_pointer(&error);
        g_mutex_unlock(&quiesce->lock);
        g_usleep(THAW_RETRY_US);
    }
}

/* An agent that was killed may have left the kernel at it: then the first thaw comes before the end of the freeze. */
static void thaw_until_settled(VmsnapQuiesce *quiesce) {
    thaw_until_done(quiesce);
    for (unsigned i = 0; i < N_SETTLING_THAWS; i++) {
        g_usleep(THAW_RETRY_US);
        thaw_until_done(quiesce);
    }
}

/* Returns: whether the owner released it, and not time. */
static gboolean wait_for_release(VmsnapQuiesce *quiesce) {
    gint64 deadline_us = deadline_in(quiesce->timeout_ms);
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&quiesce->lock);
    quiesce_set_state(quiesce, FROZEN);
    while (!quiesce->release)
        if (!g_cond_wait_until(&quiesce->changed, &quiesce->lock, deadline_us))
            return quiesce->release;
    return TRUE;
}

/* The owner need not wait until there is an agent again that can be told to thaw. */
static void lost_note(VmsnapQuiesce *quiesce, const GError *error) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&quiesce->lock);
    quiesce->error = g_error_copy(error);
    quiesce_set_state(quiesce, LOST);
}

static gpointer quiesce_run(gpointer data) {
    VmsnapQuiesce *quiesce = data;
    g_autoptr(GError) error = NULL;
    State end = NOT_DONE;
    VmsnapFreeze freeze = vmsnap_libvirt_freeze(quiesce->domain, &error);
    if (freeze == VMSNAP_FREEZE_DONE) {
        end = wait_for_release(quiesce) ? THAWED : EXPIRED;
        thaw_until_done(quiesce);
    } else if (freeze == VMSNAP_FREEZE_UNKNOWN) {
        lost_note(quiesce, error);
        thaw_until_settled(quiesce);
    }
    g_mutex_lock(&quiesce->lock);
    if (error) {
        g_clear_error(&quiesce->error);
        quiesce->error = g_steal_pointer(&error);
    }
    quiesce_set_state(quiesce, end);
    quiesce_unref(quiesce);
    return NULL;
}

/* Called with the lock. Returns: whether the state is another than @state. */
static gboolean wait_while(VmsnapQuiesce *quiesce, State state, unsigned timeout_ms) {
    gint64 deadline_us = deadline_in(timeout_ms);
    while (quiesce->state == state)
        if (!g_cond_wait_until(&quiesce->changed, &quiesce->lock, deadline_us))
            return quiesce->state != state;
    return TRUE;
}

static void set_late_error(const VmsnapQuiesce *quiesce, const char *verb, GError **error) {
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to %s the filesystems of domain '%s': the guest agent did not do it within %u s", verb,
                virDomainGetName(quiesce->domain), quiesce->timeout_ms / 1000);
}

VmsnapQuiesce *vmsnap_quiesce_freeze(virDomainPtr domain, unsigned timeout_ms, GError **error) {
    VmsnapQuiesce *quiesce = g_new0(VmsnapQuiesce, 1);
    quiesce->domain = find_for_thread(domain, error);
    quiesce->timeout_ms = timeout_ms;
    quiesce->references = 2;
    g_mutex_init(&quiesce->lock);
    g_cond_init(&quiesce->changed);
    GThread *thread = quiesce->domain ? vmsnap_thread_try_new("vmsnap-quiesce", quiesce_run, quiesce, error) : NULL;
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&quiesce->lock);
    if (!thread) {
        quiesce->references--;
        quiesce->state = NOT_DONE;
        return quiesce;
    }
    g_thread_unref(thread);
    if (!wait_while(quiesce, FREEZING, timeout_ms)) {
        quiesce->release = TRUE;
        set_late_error(quiesce, "freeze", error);
    } else if (quiesce->state == NOT_DONE || quiesce->state == LOST) {
        g_propagate_error(error, g_error_copy(quiesce->error));
    }
    return quiesce;
}

gboolean vmsnap_quiesce_thaw(VmsnapQuiesce *quiesce, unsigned timeout_ms, GError **error) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&quiesce->lock);
    quiesce->release = TRUE;
    g_cond_broadcast(&quiesce->changed);
    if (!wait_while(quiesce, FROZEN, timeout_ms)) {
        if (quiesce->error)
            g_propagate_error(error, g_error_copy(quiesce->error));
        else
            set_late_error(quiesce, "thaw", error);
    } else if (quiesce->state == EXPIRED) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to keep the filesystems of domain '%s' frozen: the backup job took longer than %u s to "
                    "begin; raise -o freeze_timeout=",
                    virDomainGetName(quiesce->domain), quiesce->timeout_ms / 1000);
    }
    return quiesce->state == THAWED;
}

static gboolean may_be_frozen(State state) {
    return state == FREEZING || state == FROZEN || state == LOST;
}

gboolean vmsnap_quiesce_is_over(VmsnapQuiesce *quiesce) {
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&quiesce->lock);
    return !may_be_frozen(quiesce->state);
}

gboolean vmsnap_quiesce_free(VmsnapQuiesce *quiesce) {
    if (!quiesce)
        return TRUE;
    g_mutex_lock(&quiesce->lock);
    quiesce->release = TRUE;
    g_cond_broadcast(&quiesce->changed);
    (void)wait_while(quiesce, FREEZING, FREE_WAIT_MS);
    (void)wait_while(quiesce, FROZEN, FREE_WAIT_MS);
    gboolean over = !may_be_frozen(quiesce->state);
    quiesce_unref(quiesce);
    return over;
}
