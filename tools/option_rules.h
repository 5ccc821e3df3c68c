/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rules that options have to follow together. */
#pragma once

#include "options.h"

/** Returns: FALSE with @error set if options do not go together, or one of them not with the source. */
gboolean vmsnap_option_rules_check(const VmsnapOptions *options, GError **error);
