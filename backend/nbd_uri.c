/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "nbd_uri.h"

#include <string.h>

#define SOCKET_KEY "socket="

/* A URI in pieces, which point into it. Whoever has all of them in this order has it back, but for its fragment. */
typedef struct {
    const char *start; /* the scheme, "://" and who and where the server is */
    size_t start_length;
    const char *path;
    size_t path_length;
    const char *query; /* behind the '?', or an empty string */
    size_t query_length;
} Pieces;

gboolean vmsnap_nbd_uri_matches(const char *text) {
    static const char *const starts[] = {"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"};
    for (size_t i = 0; i < G_N_ELEMENTS(starts); i++)
        if (g_str_has_prefix(text, starts[i]))
            return TRUE;
    return FALSE;
}

static Pieces uri_split(const char *uri) {
    const char *authority = strstr(uri, "://");
    g_assert(authority);
    authority += strlen("://");
    Pieces pieces = {.start = uri, .path = authority + strcspn(authority, "/?#")};
    pieces.start_length = (size_t)(pieces.path - uri);
    pieces.path_length = strcspn(pieces.path, "?#");
    const char *rest = pieces.path + pieces.path_length;
    pieces.query = rest + (*rest == '?');
    pieces.query_length = *rest == '?' ? strcspn(pieces.query, "#") : 0;
    return pieces;
}

static gboolean is_unix(const char *uri) {
    return g_str_has_prefix(uri, "nbd+unix:") || g_str_has_prefix(uri, "nbds+unix:");
}

/* What cannot be decoded is taken as it is: libnbd will say what it thinks of it. */
static char *text_decode(const char *text) {
    char *decoded = g_uri_unescape_string(text, NULL);
    return decoded ? decoded : g_strdup(text);
}

/* Bytes above 127 are escaped, too: a name need not be UTF-8. */
static char *text_encode(const char *text, const char *as_they_are) {
    return g_uri_escape_string(text, as_they_are, FALSE);
}

/* Both separators are known to libnbd. */
static char **query_split(const Pieces *pieces) {
    g_autofree char *query = g_strndup(pieces->query, pieces->query_length);
    return g_strsplit_set(query, "&;", -1);
}

static char *uri_join(const Pieces *pieces, const char *path, char **parameters) {
    g_autofree char *query = g_strjoinv("&", parameters);
    return g_strdup_printf("%.*s%s%s%s", (int)pieces->start_length, pieces->start, path, query[0] ? "?" : "", query);
}

static void parameter_set(char **parameter, const char *key, const char *value) {
    g_autofree char *encoded = text_encode(value, "/");
    g_free(*parameter);
    *parameter = g_strconcat(key, encoded, NULL);
}

static void parameter_resolve(char **parameter) {
    static const char *const keys[] = {SOCKET_KEY, "tls-certificates=", "tls-psk-file="};
    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++) {
        if (!g_str_has_prefix(*parameter, keys[i]))
            continue;
        g_autofree char *path = text_decode(*parameter + strlen(keys[i]));
        g_autofree char *absolute = path[0] && path[0] != '/' ? g_canonicalize_filename(path, NULL) : NULL;
        if (absolute)
            parameter_set(parameter, keys[i], absolute);
    }
}

char *vmsnap_nbd_uri_resolve(const char *uri) {
    const Pieces pieces = uri_split(uri);
    g_auto(GStrv) parameters = query_split(&pieces);
    g_autofree char *path = g_strndup(pieces.path, pieces.path_length);
    for (char **parameter = parameters; *parameter; parameter++)
        parameter_resolve(parameter);
    return uri_join(&pieces, path, parameters);
}

char *vmsnap_nbd_uri_get_socket(const char *uri) {
    const Pieces pieces = uri_split(uri);
    g_auto(GStrv) parameters = query_split(&pieces);
    for (char **parameter = parameters; is_unix(uri) && *parameter; parameter++)
        if (g_str_has_prefix(*parameter, SOCKET_KEY))
            return text_decode(*parameter + strlen(SOCKET_KEY));
    return NULL;
}

/* The first slash only separates: a name may begin with one, too. */
char *vmsnap_nbd_uri_get_export(const char *uri) {
    const Pieces pieces = uri_split(uri);
    if (pieces.path_length <= 1)
        return NULL;
    g_autofree char *path = g_strndup(pieces.path + 1, pieces.path_length - 1);
    return text_decode(path);
}

char *vmsnap_nbd_uri_build(const char *uri, const char *export_name, const char *socket) {
    const Pieces pieces = uri_split(uri);
    g_auto(GStrv) parameters = query_split(&pieces);
    g_autofree char *encoded = text_encode(export_name, NULL);
    g_autofree char *path = g_strconcat("/", encoded, NULL);
    for (char **parameter = parameters; socket && *parameter; parameter++)
        if (g_str_has_prefix(*parameter, SOCKET_KEY))
            parameter_set(parameter, SOCKET_KEY, socket);
    return uri_join(&pieces, path, parameters);
}
