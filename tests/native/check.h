/* check.h: CHECK(condition) for the C tests; the first that fails ends the program. */
#ifndef ROOTSEAL_TESTS_CHECK_H
#define ROOTSEAL_TESTS_CHECK_H
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition,  \
				errno);                                                            \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

#endif
