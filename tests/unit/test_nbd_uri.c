/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* NBD URIs as text: what is told from them, and what is changed in them. */
#include "backend/nbd_uri.h"

#include <unistd.h>

static void test_sources_are_told_by_their_beginning(void) {
    static const char *const uris[] = {"nbd://", "nbds://host", "nbd+unix:///?socket=/s", "nbds+unix:///x?socket=/s"};
    static const char *const others[] = {"",          "nbd",        "nbd:",      "nbd:host:10809", "nbd+vsock://2/",
                                         "xnbd://h/", "NBD://host", "qmp:/sock", "http://nbd://"};
    for (size_t i = 0; i < G_N_ELEMENTS(uris); i++)
        g_assert_true(vmsnap_nbd_uri_matches(uris[i]));
    for (size_t i = 0; i < G_N_ELEMENTS(others); i++)
        g_assert_false(vmsnap_nbd_uri_matches(others[i]));
}

static void test_the_export_is_the_path(void) {
    static const struct {
        const char *uri;
        const char *name;
    } cases[] = {
        {"nbd://host", NULL},
        {"nbd://host/", NULL},
        {"nbd://host:10809/?x=/y", NULL},
        {"nbd://host#/f", NULL},
        {"nbd://host/vda", "vda"},
        {"nbd://host/vda#f", "vda"},
        {"nbd://host/a/b", "a/b"},
        {"nbd://host//a", "/a"},
        {"nbd://host/%2Fa%20b%3F", "/a b?"},
        {"nbd://host/%FF", "\xff"},
        {"nbd://host/100%", "100%"},
        {"nbd+unix:///x?socket=/s/y", "x"},
        {"nbd+unix:///?socket=/s/y", NULL},
        {"nbds://user@[::1]:1/x", "x"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *name = vmsnap_nbd_uri_get_export(cases[i].uri);
        g_test_message("%s", cases[i].uri);
        g_assert_cmpstr(name, ==, cases[i].name);
    }
}

static void test_the_socket_is_a_parameter(void) {
    static const struct {
        const char *uri;
        const char *socket;
    } cases[] = {
        {"nbd+unix:///?socket=/run/nbd.sock", "/run/nbd.sock"},
        {"nbds+unix:///x?tls-psk-file=/psk&socket=/a%20b", "/a b"},
        {"nbds+unix:///x?tls-psk-file=/psk;socket=/s;y=z#f", "/s"},
        {"nbd+unix:///?mysocket=/s", NULL},
        {"nbd+unix:///", NULL},
        {"nbd+unix://#?socket=/s", NULL},
        {"nbd://host/?socket=/s", NULL},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *socket = vmsnap_nbd_uri_get_socket(cases[i].uri);
        g_test_message("%s", cases[i].uri);
        g_assert_cmpstr(socket, ==, cases[i].socket);
    }
}

static void test_another_export_and_socket_take_their_place(void) {
    static const struct {
        const char *uri;
        const char *name;
        const char *socket;
        const char *expected;
    } cases[] = {
        {"nbd://host", "", NULL, "nbd://host/"},
        {"nbd://host", "vda", NULL, "nbd://host/vda"},
        {"nbds://u@host:1/old?tls-psk-file=/p", "new", NULL, "nbds://u@host:1/new?tls-psk-file=/p"},
        {"nbd+unix:///old?socket=/s", "", "/proc/self/fd/3", "nbd+unix:///?socket=/proc/self/fd/3"},
        {"nbds+unix://?socket=/s;tls-psk-file=/p#f", "x", "/t", "nbds+unix:///x?socket=/t&tls-psk-file=/p"},
        {"nbd://host", "/a?b#c%d e&f=g", NULL, "nbd://host/%2Fa%3Fb%23c%25d%20e%26f%3Dg"},
        {"nbd://host", "\xff\xc3\xbc", NULL, "nbd://host/%FF%C3%BC"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *uri = vmsnap_nbd_uri_build(cases[i].uri, cases[i].name, cases[i].socket);
        g_autofree char *name = vmsnap_nbd_uri_get_export(uri);
        g_assert_cmpstr(uri, ==, cases[i].expected);
        g_assert_cmpstr(name, ==, cases[i].name[0] ? cases[i].name : NULL);
    }
}

static void test_paths_do_not_depend_on_the_directory(void) {
    g_autofree char *here = g_get_current_dir();
    g_autofree char *escaped = g_uri_escape_string(here, "/", FALSE);
    g_autofree char *expected =
        g_strdup_printf("nbds+unix:///x?socket=%s/a%%20b&tls-certificates=/pki&tls-psk-file=%s/psk", escaped, escaped);
    g_autofree char *resolved =
        vmsnap_nbd_uri_resolve("nbds+unix:///x?socket=a%20b&tls-certificates=/pki&tls-psk-file=./psk");
    g_autofree char *again = vmsnap_nbd_uri_resolve(resolved);
    g_assert_cmpstr(resolved, ==, expected);
    g_assert_cmpstr(again, ==, resolved);
}

static void test_what_needs_no_change_is_kept(void) {
    static const char *const uris[] = {
        "nbd://",         "nbd://host",       "nbd://host:1/a/b%2F?x=y&z", "nbd+unix:///",
        "nbd+unix:///?x", "nbds://h/?socket", "nbd+unix:///?socket="};
    for (size_t i = 0; i < G_N_ELEMENTS(uris); i++) {
        g_autofree char *resolved = vmsnap_nbd_uri_resolve(uris[i]);
        g_assert_cmpstr(resolved, ==, uris[i]);
    }
}

int main(int argc, char **argv) {
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd-uri/sources-are-told-by-their-beginning", test_sources_are_told_by_their_beginning);
    g_test_add_func("/nbd-uri/the-export-is-the-path", test_the_export_is_the_path);
    g_test_add_func("/nbd-uri/the-socket-is-a-parameter", test_the_socket_is_a_parameter);
    g_test_add_func("/nbd-uri/another-export-and-socket-take-their-place",
                    test_another_export_and_socket_take_their_place);
    g_test_add_func("/nbd-uri/paths-do-not-depend-on-the-directory", test_paths_do_not_depend_on_the_directory);
    g_test_add_func("/nbd-uri/what-needs-no-change-is-kept", test_what_needs_no_change_is_kept);
    return g_test_run();
}
