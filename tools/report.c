/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The only place that turns errors into text for people, so that they all look alike. */
#include "report.h"

#include "vmsnap/error.h"

#include <stdio.h>
#include <syslog.h>

/* What libvirt, QEMU or a name has in it may be more than a line, or end in one. */
static void line_write(const char *message) {
    g_autofree char *line = g_strstrip(g_strdelimit(g_strdup(message), "\r\n", ' '));
    (void)fprintf(stderr, "%s: %s\n", g_get_prgname(), line);
}

int vmsnap_report_error(const GError *error) {
    line_write(error->message);
    if (error->domain != VMSNAP_ERROR || error->code == VMSNAP_ERROR_SYSTEM)
        return VMSNAP_EXIT_SYSTEM;
    return error->code == VMSNAP_ERROR_USAGE ? VMSNAP_EXIT_USAGE : VMSNAP_EXIT_FAILED;
}

static void stderr_write(const char *domain, GLogLevelFlags level, const char *message, gpointer user_data) {
    (void)domain;
    (void)level;
    (void)user_data;
    line_write(message);
}

static void syslog_write(const char *domain, GLogLevelFlags level, const char *message, gpointer user_data) {
    (void)domain;
    (void)user_data;
    gboolean severe = (level & (G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL)) != 0;
    int unsevere = level & G_LOG_LEVEL_WARNING ? LOG_WARNING : LOG_INFO;
    syslog(severe ? LOG_ERR : unsevere, "%s", message);
}

void vmsnap_report_to_stderr(void) {
    (void)g_log_set_default_handler(stderr_write, NULL);
}

void vmsnap_report_to_syslog(void) {
    openlog("vmsnap", LOG_PID, LOG_DAEMON);
    (void)g_log_set_default_handler(syslog_write, NULL);
}
