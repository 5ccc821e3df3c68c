/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup job belongs to libvirtd and not to whoever began it: it outlives a client that dies and a libvirtd that is
 * restarted. What makes a job ours is the NBD socket that its XML names, because that lies in a directory named after
 * the snapshot.
 */
#include "libvirt_domain.h"

#include "domain.h"
#include "vmsnap/error.h"
#include "vmsnap/record.h"

#include <string.h>

#define JOB_POLL_US 10000
/* VIR_ERR_AGENT_COMMAND_TIMEOUT, of libvirts that are newer than the one that is built with. */
#define AGENT_COMMAND_TIMEOUT 112
/* How often it is tried again to reach a libvirtd that is away. */
#define RETRY_US 200000
/* How long a begin that lost its caller may take until libvirtd shows its job. */
#define SETTLE_MS 1000

/* libvirt's own way is to print every error; here the one who handles it does. */
static void error_ignore(void *user_data, virErrorPtr error) {
    (void)user_data;
    (void)error;
}

static gboolean is_denied(int code) {
    return code == VIR_ERR_OPERATION_DENIED || code == VIR_ERR_ACCESS_DENIED || code == VIR_ERR_AUTH_FAILED ||
           code == VIR_ERR_AUTH_UNAVAILABLE || code == VIR_ERR_AUTH_CANCELLED;
}

/* @object: found out before the call that failed, since libvirt forgets its last error with each further call */
static void set_libvirt_error(GError **error, const char *verb, const char *object, const char *remedy) {
    if (is_denied(virGetLastErrorCode()))
        remedy = "; the libvirt connection is read-only or lacks the right: check -o connect=, or run as root";
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED, "failed to %s '%s': %s%s", verb, object,
                virGetLastErrorMessage(), remedy);
}

/* The job's socket is a file: it can only be reached from the host that the machine runs on. */
static gboolean uri_check_local(const char *text, GError **error) {
    g_autoptr(GUri) uri = text ? g_uri_parse(text, G_URI_FLAGS_NON_DNS, NULL) : NULL;
    const char *host = uri ? g_uri_get_host(uri) : NULL;
    if (!host || !host[0] || g_str_equal(host, "localhost"))
        return TRUE;
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to use libvirt at '%s': the machine runs on another host; run mount.vmsnap on '%s'", text,
                host);
    return FALSE;
}

/* What the caller wrote is checked before it costs a connection, what it or the default stands for (an alias) after. */
virConnectPtr vmsnap_libvirt_connect(const char *uri, GError **error) {
    if (!uri_check_local(uri, error))
        return NULL;
    virSetErrorFunc(NULL, error_ignore);
    g_autoptr(virConnect) connection = virConnectOpen(uri);
    if (!connection) {
        set_libvirt_error(error, "connect to libvirt at", uri ? uri : "its default URI",
                          "; see that libvirtd runs, or name another with -o connect=URI");
        return NULL;
    }
    g_autofree char *real_uri = virConnectGetURI(connection);
    return uri_check_local(real_uri, error) ? g_steal_pointer(&connection) : NULL;
}

static virDomainPtr domain_lookup(virConnectPtr connection, const char *source) {
    virDomainPtr domain = virDomainLookupByName(connection, source);
    if (!domain && g_uuid_string_is_valid(source))
        domain = virDomainLookupByUUIDString(connection, source);
    guint64 id;
    if (!domain && g_ascii_string_to_unsigned(source, 10, 0, G_MAXINT, &id, NULL))
        domain = virDomainLookupByID(connection, (int)id);
    return domain;
}

virDomainPtr vmsnap_libvirt_find(virConnectPtr connection, const char *source, GError **error) {
    g_autoptr(virDomain) domain = domain_lookup(connection, source);
    if (!domain && virGetLastErrorCode() == VIR_ERR_NO_DOMAIN) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to find domain '%s': libvirt knows no such name, UUID or id; see 'virsh list'", source);
        return NULL;
    }
    int active = domain ? virDomainIsActive(domain) : -1;
    if (active < 0) {
        set_libvirt_error(error, "look up domain", source, "");
        return NULL;
    }
    if (!active) {
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to mount domain '%s': it is shut off; start it, or copy its disks as they are", source);
        return NULL;
    }
    return g_steal_pointer(&domain);
}

char *vmsnap_libvirt_get_xml(virDomainPtr domain, unsigned flags, GError **error) {
    const char *name = virDomainGetName(domain);
    char *xml = virDomainGetXMLDesc(domain, flags);
    if (!xml)
        set_libvirt_error(error, "read the XML of domain", name, "");
    return xml;
}

/*
 * @ret_socket: (transfer full): the socket of the domain's backup job, "" if it has none, or NULL if there is no such
 * job Returns: FALSE if libvirt cannot tell.
 */
static gboolean job_get_socket(virDomainPtr domain, char **ret_socket) {
    g_autofree char *xml = virDomainBackupGetXMLDesc(domain, 0);
    if (!xml && virGetLastErrorCode() != VIR_ERR_NO_DOMAIN_BACKUP)
        return FALSE;
    *ret_socket = xml ? vmsnap_domain_parse_backup_socket(xml) : NULL;
    if (xml && !*ret_socket)
        *ret_socket = g_strdup("");
    return TRUE;
}

static gboolean job_runs(virDomainPtr domain) {
    virDomainJobInfo info = {0};
    return virDomainGetJobInfo(domain, &info) == 0 &&
           (info.type == VIR_DOMAIN_JOB_BOUNDED || info.type == VIR_DOMAIN_JOB_UNBOUNDED);
}

static gboolean backup_runs(virDomainPtr domain) {
    virTypedParameterPtr params = NULL;
    int type = VIR_DOMAIN_JOB_NONE, n_params = 0, operation = VIR_DOMAIN_JOB_OPERATION_UNKNOWN;
    if (virDomainGetJobStats(domain, &type, &params, &n_params, 0) != 0)
        return FALSE;
    (void)virTypedParamsGetInt(params, n_params, VIR_DOMAIN_JOB_OPERATION, &operation);
    virTypedParamsFree(params, n_params);
    return type != VIR_DOMAIN_JOB_NONE && operation == VIR_DOMAIN_JOB_OPERATION_BACKUP;
}

gboolean vmsnap_libvirt_check_idle(virDomainPtr domain, GError **error) {
    const char *name = virDomainGetName(domain);
    g_autofree char *socket = NULL;
    if (!job_get_socket(domain, &socket)) {
        set_libvirt_error(error, "look for a backup job of domain", name, "");
        return FALSE;
    }
    if (!socket && !job_runs(domain))
        return TRUE;
    /* While a backup begins or ends, libvirt knows of a job but has no XML of it. */
    char uuid[VIR_UUID_STRING_BUFLEN] = "";
    (void)virDomainGetUUIDString(domain, uuid);
    if (!socket && !vmsnap_record_machine_is_free("mount", name, uuid, error))
        return FALSE;
    gboolean alive = FALSE;
    g_autoptr(VmsnapRecord) record = socket ? vmsnap_record_find_by_socket(socket, &alive) : NULL;
    if (alive)
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to mount domain '%s': it is mounted on '%s' already; unmount that first", name,
                    record->mount_point);
    else if (record)
        g_set_error(
            error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
            "failed to mount domain '%s': the backup job of a mount on '%s' was left by a daemon that died; end "
            "it with 'mount.vmsnap --cleanup %s'",
            name, record->mount_point, name);
    else
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to mount domain '%s': another job runs on it; wait until it ends (virsh domjobinfo %s) or "
                    "end it (virsh domjobabort %s)",
                    name, name, name);
    return FALSE;
}

gboolean vmsnap_libvirt_get_size(virDomainPtr domain, const char *target, uint64_t *ret_bytes, GError **error) {
    virDomainBlockInfo info = {0};
    const char *name = virDomainGetName(domain);
    if (virDomainGetBlockInfo(domain, target, &info, 0) != 0) {
        set_libvirt_error(error, "learn the disk sizes of domain", name, "");
        return FALSE;
    }
    *ret_bytes = info.capacity;
    return TRUE;
}

gboolean vmsnap_libvirt_begin_job(virDomainPtr domain, const char *xml, const char *checkpoint_xml,
                                  gboolean *ret_since_is_bad, GError **error) {
    const char *name = virDomainGetName(domain);
    *ret_since_is_bad = FALSE;
    if (virDomainBackupBegin(domain, xml, checkpoint_xml, VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL) == 0)
        return TRUE;
    int code = virGetLastErrorCode();
    *ret_since_is_bad = code == VIR_ERR_CHECKPOINT_INCONSISTENT || code == VIR_ERR_NO_DOMAIN_CHECKPOINT;
    set_libvirt_error(error, "begin the backup job of domain", name, "");
    return FALSE;
}

typedef enum {
    JOB_RUNS,
    JOB_GONE,
    JOB_REPLACED, /* another one runs */
    JOB_DOMAIN_STOPPED,
    JOB_UNKNOWN, /* libvirt cannot tell */
} JobState;

static JobState job_check(virDomainPtr domain, const char *socket) {
    g_autofree char *current_socket = NULL;
    int active = virDomainIsActive(domain);
    if (active == 0)
        return JOB_DOMAIN_STOPPED;
    if (active < 0 || !job_get_socket(domain, &current_socket))
        return JOB_UNKNOWN;
    if (!current_socket)
        return JOB_GONE;
    return g_str_equal(current_socket, socket) ? JOB_RUNS : JOB_REPLACED;
}

/* libvirt answers an abort before the job is over; the job's XML goes with it. */
static JobState job_wait_while_running(virDomainPtr domain, const char *socket, unsigned timeout_ms) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)timeout_ms * 1000;
    JobState state;
    while ((state = job_check(domain, socket)) == JOB_RUNS && g_get_monotonic_time() < deadline_us)
        g_usleep(JOB_POLL_US);
    return state;
}

/* A begin whose caller is gone goes on in libvirtd: first there is nothing, then a job without XML, then the job. */
static JobState job_check_settled(virDomainPtr domain, const VmsnapJob *job) {
    gint64 begin_us = g_get_monotonic_time();
    gint64 settled_us = begin_us + (job->may_be_beginning ? SETTLE_MS * 1000 : 0);
    gint64 deadline_us = begin_us + (gint64)job->timeout_ms * 1000;
    JobState state;
    while ((state = job_check(domain, job->socket)) == JOB_GONE && job->may_be_beginning &&
           g_get_monotonic_time() < (backup_runs(domain) ? deadline_us : settled_us))
        g_usleep(JOB_POLL_US);
    return state;
}

/* @aborted: whether this process has aborted it, in this or an earlier try */
static VmsnapJobEnd job_end_of(JobState state, gboolean aborted) {
    if (aborted)
        return VMSNAP_JOB_ENDED;
    return state == JOB_DOMAIN_STOPPED ? VMSNAP_JOB_LOST : VMSNAP_JOB_GONE;
}

/* @abort_sent: set when libvirt was asked to abort the job: its answer may be lost with libvirtd */
static VmsnapJobEnd job_end(virDomainPtr domain, const VmsnapJob *job, gboolean *abort_sent, GError **error) {
    const char *name = virDomainGetName(domain);
    JobState state = job_check_settled(domain, job);
    if (state != JOB_RUNS && state != JOB_UNKNOWN)
        return job_end_of(state, *abort_sent);
    gboolean aborted = state == JOB_RUNS && virDomainAbortJob(domain) == 0;
    int code = virGetLastErrorCode();
    /* A job that is just ending for another reason can no longer be aborted, although its XML is still there. */
    gboolean ending = state == JOB_RUNS && code == VIR_ERR_OPERATION_INVALID;
    *abort_sent = *abort_sent || aborted || (state == JOB_RUNS && !ending && !is_denied(code));
    if (!aborted && !ending) {
        set_libvirt_error(error, "end the backup job of domain", name, "");
        return VMSNAP_JOB_FAILED;
    }
    state = job_wait_while_running(domain, job->socket, job->timeout_ms);
    if (state != JOB_RUNS && state != JOB_UNKNOWN)
        return job_end_of(state, *abort_sent);
    g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                "failed to end the backup job of domain '%s': it still runs after %u s; see 'virsh domjobinfo %s'",
                name, job->timeout_ms / 1000, name);
    return VMSNAP_JOB_FAILED;
}

virDomainPtr vmsnap_libvirt_find_again(virConnectPtr connection, const char *uri, const char *uuid, GError **error) {
    g_autoptr(virConnect) own_connection = NULL;
    virDomainPtr domain = connection ? virDomainLookupByUUIDString(connection, uuid) : NULL;
    /* That libvirtd has gone away, and maybe come back, shows in an old connection only when it is used. */
    if (!domain && (!connection || virGetLastErrorCode() != VIR_ERR_NO_DOMAIN)) {
        own_connection = vmsnap_libvirt_connect(uri, error);
        if (!own_connection)
            return NULL;
        domain = virDomainLookupByUUIDString(own_connection, uuid);
    }
    if (!domain && virGetLastErrorCode() != VIR_ERR_NO_DOMAIN)
        set_libvirt_error(error, "look up domain", uuid, "");
    return domain;
}

gboolean vmsnap_libvirt_resume(virDomainPtr domain, unsigned lag_ms, GError **error) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)lag_ms * 1000;
    while (!vmsnap_libvirt_is_paused_by_error(domain)) {
        if (g_get_monotonic_time() >= deadline_us)
            return TRUE;
        g_usleep(JOB_POLL_US);
    }
    if (virDomainResume(domain) == 0) {
        g_warning("the guest was paused by an I/O error beside our backup job, and runs again");
        return TRUE;
    }
    const char *name = virDomainGetName(domain);
    set_libvirt_error(error, "resume domain", name, "; see 'virsh resume'");
    return FALSE;
}

/*
 * The thread of libvirt's that has ended the job gives scratch files back a little later, and holds the domain's right
 * to change until then: any call that needs that right, and asks QEMU for no block nodes, waits for it.
 */
static void job_wait_given_back(virDomainPtr domain) {
    virDomainMemoryStatStruct unused[1];
    (void)virDomainMemoryStats(domain, unused, G_N_ELEMENTS(unused), 0);
}

static VmsnapJobEnd job_find_and_end(const VmsnapJob *job, gboolean *abort_sent, GError **error) {
    g_autoptr(GError) find_error = NULL;
    g_autoptr(virDomain) domain = vmsnap_libvirt_find_again(job->connection, job->uri, job->domain_uuid, &find_error);
    if (domain) {
        VmsnapJobEnd end = job_end(domain, job, abort_sent, error);
        if (end != VMSNAP_JOB_ENDED && end != VMSNAP_JOB_GONE)
            return end;
        gboolean resumed = !job->may_resume || vmsnap_libvirt_resume(domain, job->pause_lag_ms, error);
        job_wait_given_back(domain);
        return resumed ? end : VMSNAP_JOB_FAILED;
    }
    if (!find_error)
        return job_end_of(JOB_DOMAIN_STOPPED, *abort_sent);
    g_propagate_error(error, g_steal_pointer(&find_error));
    return VMSNAP_JOB_FAILED;
}

VmsnapJobEnd vmsnap_libvirt_end_job(const VmsnapJob *job, GError **error) {
    gint64 deadline_us = g_get_monotonic_time() + (gint64)job->timeout_ms * 1000;
    gboolean abort_sent = FALSE;
    for (;;) {
        g_autoptr(GError) last_error = NULL;
        VmsnapJobEnd end = job_find_and_end(job, &abort_sent, &last_error);
        if (end != VMSNAP_JOB_FAILED)
            return end;
        if (g_get_monotonic_time() >= deadline_us) {
            g_propagate_error(error, g_steal_pointer(&last_error));
            return end;
        }
        g_usleep(RETRY_US);
    }
}

gboolean vmsnap_libvirt_agent_is_connected(virDomainPtr domain) {
    g_autofree char *xml = virDomainGetXMLDesc(domain, 0);
    return xml && vmsnap_domain_parse_agent_is_connected(xml);
}

VmsnapFreeze vmsnap_libvirt_freeze(virDomainPtr domain, GError **error) {
    const char *name = virDomainGetName(domain);
    if (!vmsnap_libvirt_agent_is_connected(domain)) {
        g_set_error(
            error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
            "failed to freeze the filesystems of domain '%s': its guest agent is not connected; install and start "
            "qemu-guest-agent in it, and see that it has the agent's channel",
            name);
        return VMSNAP_FREEZE_NONE;
    }
    int n_frozen = virDomainFSFreeze(domain, NULL, 0, 0);
    if (n_frozen > 0)
        return VMSNAP_FREEZE_DONE;
    int code = virGetLastErrorCode();
    if (n_frozen < 0)
        set_libvirt_error(error, "freeze the filesystems of domain", name, "");
    else
        g_set_error(error, VMSNAP_ERROR, VMSNAP_ERROR_FAILED,
                    "failed to freeze the filesystems of domain '%s': the guest has none mounted", name);
    /* What the agent refuses it undoes by itself. Of one that was lost meanwhile nobody knows how far it came. */
    gboolean lost = n_frozen < 0 && (code == VIR_ERR_AGENT_UNRESPONSIVE || code == AGENT_COMMAND_TIMEOUT ||
                                     virConnectIsAlive(virDomainGetConnect(domain)) <= 0);
    return lost || n_frozen == 0 ? VMSNAP_FREEZE_UNKNOWN : VMSNAP_FREEZE_NONE;
}

static gboolean domain_thaw(virDomainPtr domain, GError **error) {
    const char *name = virDomainGetName(domain);
    if (virDomainFSThaw(domain, NULL, 0, 0) >= 0 || virDomainIsActive(domain) == 0)
        return TRUE;
    set_libvirt_error(error, "thaw the filesystems of domain", name, "; see 'virsh domfsthaw'");
    return FALSE;
}

gboolean vmsnap_libvirt_thaw(virConnectPtr connection, const char *uri, const char *domain_uuid, GError **error) {
    g_autoptr(GError) find_error = NULL;
    g_autoptr(virDomain) domain = vmsnap_libvirt_find_again(connection, uri, domain_uuid, &find_error);
    if (domain)
        return domain_thaw(domain, error);
    if (!find_error)
        return TRUE;
    g_propagate_error(error, g_steal_pointer(&find_error));
    return FALSE;
}

gboolean vmsnap_libvirt_is_paused_by_error(virDomainPtr domain) {
    int state, reason;
    return virDomainGetState(domain, &state, &reason, 0) == 0 && state == VIR_DOMAIN_PAUSED &&
           reason == VIR_DOMAIN_PAUSED_IOERROR;
}

char *vmsnap_libvirt_format_version(unsigned long version) {
    return g_strdup_printf("%lu.%lu.%lu", version / 1000000, version / 1000 % 1000, version % 1000);
}
