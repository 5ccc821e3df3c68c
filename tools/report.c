/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The only place that turns errors into text for people, so that they all look alike. */
#include "report.h"

#include "vmsnap/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <syslog.h>
#include <unistd.h>

/* Returns: (transfer full): what libvirt, QEMU or a name has in it may be more than a line, or end in one. */
static char *line_of(const char *message) {
    return g_strstrip(g_strdelimit(g_strdup(message), "\r\n", ' '));
}

static void line_write(const char *message) {
    g_autofree char *line = line_of(message);
    (void)fprintf(stderr, "%s: %s\n", g_get_prgname(), line);
}

int vmsnap_report_error(const GError *error) {
    line_write(error->message);
    if (error->domain != VMSNAP_ERROR || error->code == VMSNAP_ERROR_SYSTEM)
        return VMSNAP_EXIT_SYSTEM;
    return error->code == VMSNAP_ERROR_USAGE ? VMSNAP_EXIT_USAGE : VMSNAP_EXIT_FAILED;
}

static GLogLevelFlags least_level = G_LOG_LEVEL_WARNING;
static char *log_subject; /* owned, or NULL */

/* GLib's levels are bits, and the more severe ones are smaller. */
static gboolean is_wanted(GLogLevelFlags level) {
    return (level & G_LOG_LEVEL_MASK) <= least_level;
}

static void stderr_write(const char *domain, GLogLevelFlags level, const char *message, gpointer user_data) {
    (void)domain;
    (void)user_data;
    if (is_wanted(level))
        line_write(message);
}

static int syslog_priority(GLogLevelFlags level) {
    if (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL))
        return LOG_ERR;
    if (level & G_LOG_LEVEL_WARNING)
        return LOG_WARNING;
    return level & G_LOG_LEVEL_MESSAGE ? LOG_NOTICE : LOG_INFO;
}

static void syslog_write(const char *domain, GLogLevelFlags level, const char *message, gpointer user_data) {
    (void)domain;
    (void)user_data;
    if (!is_wanted(level) && (level & G_LOG_LEVEL_MASK) > G_LOG_LEVEL_MESSAGE)
        return;
    g_autofree char *whole = g_strconcat(log_subject ? log_subject : "", log_subject ? ": " : "", message, NULL);
    g_autofree char *line = line_of(whole);
    syslog(syslog_priority(level), "%s", line);
}

void vmsnap_report_to_stderr(GLogLevelFlags level) {
    least_level = level;
    (void)g_log_set_default_handler(stderr_write, NULL);
}

void vmsnap_report_set_subject(const char *uuid, const char *machine, const char *mount_point) {
    g_free(log_subject);
    log_subject = g_strdup_printf("snapshot %s of '%s' on '%s'", uuid, machine, mount_point);
}

static void syslog_open(void) {
    openlog("vmsnap", LOG_PID, LOG_DAEMON);
    (void)g_log_set_default_handler(syslog_write, NULL);
}

void vmsnap_report_detach(void) {
    syslog_open();
    (void)setsid();
    if (chdir("/") != 0)
        g_warning("failed to change to '/': %s", g_strerror(errno));
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = STDIN_FILENO; null_fd >= 0 && fd <= STDERR_FILENO; fd++)
        (void)dup2(null_fd, fd);
    if (null_fd > STDERR_FILENO)
        (void)close(null_fd);
}
