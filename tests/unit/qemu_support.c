/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qemu_support.h"

#include "backend/scratch.h"
#include "ordinary_user.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

const char *const qemu_devices[QEMU_N_DISKS] = {"/machine/peripheral/vda/virtio-backend", "/machine/peripheral/sda"};

char *qemu_path(const Qemu *qemu, const char *name) {
    return g_build_filename(qemu->directory, name, NULL);
}

static void make_disk(const Qemu *qemu, const char *name) {
    g_autofree char *path = qemu_path(qemu, name);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, (off_t)QEMU_DISK_BYTES), ==, 0);
    (void)close(fd);
}

/* @path: of the file that gets what it prints */
static void exit_with_parent(gpointer path) {
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    (void)dup2(fd, STDOUT_FILENO);
    (void)close(fd);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void qemu_spawn(Qemu *qemu) {
    static const char *const arguments[] = {
        "stdbuf",
        "-oL",
        "qemu-system-x86_64",
        "-S",
        "-nodefaults",
        "-display",
        "none",
        "-m",
        "16",
        "-accel",
        "tcg",
        "-qmp",
        "unix:own.sock,server=on,wait=off",
        "-qmp",
        "unix:qmp.sock,server=on,wait=off",
        "-blockdev",
        "raw,node-name=n0,file.driver=file,file.filename=disk0.raw,discard=unmap",
        "-device",
        "virtio-blk-pci,drive=n0,id=vda",
        "-blockdev",
        "raw,node-name=n1,file.driver=file,file.filename=disk1.raw",
        "-device",
        "virtio-scsi-pci",
        "-device",
        "scsi-hd,drive=n1,id=sda",
        NULL,
    };
    g_autoptr(GError) error = NULL;
    GSpawnFlags flags = G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD;
    if (!g_test_verbose())
        flags |= G_SPAWN_STDERR_TO_DEV_NULL;
    (void)g_spawn_async(qemu->directory, (char **)arguments, NULL, flags, exit_with_parent, qemu->output, &qemu->pid,
                        &error);
    g_assert_no_error(error);
}

void qemu_start(Qemu *qemu) {
    *qemu = (Qemu){.directory = g_dir_make_tmp("vmsnap-XXXXXX", NULL)};
    qemu->socket = qemu_path(qemu, "qmp.sock");
    qemu->output = qemu_path(qemu, "output");
    g_autofree char *own_socket = qemu_path(qemu, "own.sock");
    make_disk(qemu, "disk0.raw");
    make_disk(qemu, "disk1.raw");
    qemu_spawn(qemu);
    gint64 deadline_us = g_get_monotonic_time() + (gint64)QEMU_TIMEOUT_MS * 1000;
    while (!(qemu->qmp = vmsnap_qmp_connect(own_socket, QEMU_TIMEOUT_MS, NULL, NULL))) {
        if (waitpid(qemu->pid, NULL, WNOHANG) == qemu->pid || g_get_monotonic_time() > deadline_us)
            g_error("failed to start QEMU");
        g_usleep(1000);
    }
}

void qemu_clear(Qemu *qemu) {
    vmsnap_qmp_free(qemu->qmp);
    (void)kill(qemu->pid, SIGKILL);
    (void)waitpid(qemu->pid, NULL, 0);
    remove_tree(qemu->directory);
    g_free(qemu->directory);
    g_free(qemu->socket);
    g_free(qemu->output);
}

char *qemu_ask(const Qemu *qemu, const char *command) {
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonNode) answer = vmsnap_qmp_call(qemu->qmp, &error, command, NULL);
    g_assert_no_error(error);
    return json_to_string(answer, TRUE);
}

char *qemu_describe(const Qemu *qemu) {
    static const char *const commands[] = {"query-block", "query-named-block-nodes", "x-debug-query-block-graph",
                                           "query-block-exports"};
    g_autoptr(GString) all = g_string_new(NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        g_autofree char *answer = qemu_ask(qemu, commands[i]);
        g_string_append_printf(all, "%s: %s\n", commands[i], answer);
    }
    return g_string_free(g_steal_pointer(&all), FALSE);
}

/* What it found goes to QEMU's standard output. */
gboolean qemu_io(const Qemu *qemu, const char *where, const char *command) {
    g_autoptr(GError) error = NULL;
    g_autofree char *line = g_strdup_printf("qemu-io %s%s \"%s\"", where[0] == '/' ? "-d " : "", where, command);
    g_autofree char *said = NULL;
    g_assert_cmpint(truncate(qemu->output, 0), ==, 0);
    (void)vmsnap_qmp_run(qemu->qmp, &error, "human-monitor-command", "{'command-line': <%s>}", line);
    g_assert_no_error(error);
    g_assert_true(g_file_get_contents(qemu->output, &said, NULL, NULL));
    g_autofree char *in_one_line = g_strescape(said, NULL);
    g_test_message("%s: %s", line, in_one_line);
    return strstr(said, " ops; ") && !strstr(said, "failed");
}

int qemu_make_image(const Qemu *qemu, const char *name) {
    g_autoptr(GError) error = NULL;
    int directory_fd = open(qemu->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    (void)vmsnap_scratch_make_image(directory_fd, name, QEMU_DISK_BYTES, geteuid(), getegid(), &error);
    g_assert_no_error(error);
    int fd = openat(directory_fd, name, O_RDWR | O_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    (void)close(directory_fd);
    return fd;
}

int qemu_listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)unlink(path);
    (void)g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(fd, (const struct sockaddr *)&address, sizeof address), ==, 0);
    g_assert_cmpint(listen(fd, 1), ==, 0);
    return fd;
}
