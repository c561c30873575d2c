// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch module, as Documentation/livepatch/livepatch.rst describes it. vmkit puts beside it replacement.c, which
 * defines functions of the same names and types as those that they take the place of, and names.h, with VMKIT_OBJECT
 * (the module that these are in, a string) and VMKIT_FUNCTIONS(each).
 */
#include "replacement.c"

#include <linux/livepatch.h>
#include <linux/module.h>

#include "names.h"

#define VMKIT_FUNCTION(function) { .old_name = #function, .new_func = function },

static struct klp_func vmkit_functions[] = { VMKIT_FUNCTIONS(VMKIT_FUNCTION) {} };

static struct klp_object vmkit_objects[] = { { .name = VMKIT_OBJECT, .funcs = vmkit_functions }, {} };

static struct klp_patch vmkit_patch = { .mod = THIS_MODULE, .objs = vmkit_objects };

static int __init vmkit_init(void)
{
	return klp_enable_patch(&vmkit_patch);
}

static void __exit vmkit_exit(void)
{
}

module_init(vmkit_init);
module_exit(vmkit_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A hot-fix made by vmkit");
MODULE_INFO(livepatch, "Y");
