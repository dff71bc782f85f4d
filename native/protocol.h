/*
 * protocol.h: the constants of docs/protocol.md for C.
 *
 * pants-plugins/rootseal/wire.py has the same ones; tests/unit/test_wire.py compares them by name
 * (RS_FRAME_X is FrameType.X, RS_TAG_X is Tag.X, RS_X_BYTES is X_BYTES and so on), so keep each
 * definition one plain decimal number.
 */
#pragma once

#define RS_PROTOCOL_VERSION	       1
#define RS_HEADER_BYTES		       8
#define RS_TLV_HEADER_BYTES	       8
#define RS_PAYLOAD_TO_DAEMON_BYTES_MAX 16777216
#define RS_PAYLOAD_BYTES_MAX	       536870912
#define RS_TLV_COUNT_MAX	       1048576
#define RS_SILENCE_SECONDS_MAX	       60

#define RS_FRAME_ANNOUNCE     1
#define RS_FRAME_PREPARED     2
#define RS_FRAME_READY	      3
#define RS_FRAME_ARMED	      4
#define RS_FRAME_EXITED	      5
#define RS_FRAME_RECORD	      6
#define RS_FRAME_ERROR	      7
#define RS_FRAME_PROGRESS     8
#define RS_FRAME_TRACE	      9
#define RS_FRAME_CHECK	      16
#define RS_FRAME_CHECKED      17
#define RS_FRAME_STATUS	      18
#define RS_FRAME_STATUS_REPLY 19
#define RS_FRAME_STOP	      20
#define RS_FRAME_STOPPED      21

#define RS_TAG_ACTION_KEY    1
#define RS_TAG_ARG	     2
#define RS_TAG_ENV	     3
#define RS_TAG_CWD	     4
#define RS_TAG_ROOT	     5
#define RS_TAG_OUTPUT_FILE   6
#define RS_TAG_OUTPUT_DIR    7
#define RS_TAG_OPTION	     8
#define RS_TAG_NAMESPACE     9
#define RS_TAG_MODE	     10
#define RS_TAG_WAIT_STATUS   11
#define RS_TAG_COUNT	     12
#define RS_TAG_RECORD	     13
#define RS_TAG_CODE	     14
#define RS_TAG_MESSAGE	     15
#define RS_TAG_JSON	     16
#define RS_TAG_EVENTS	     17
#define RS_TAG_ESCAPES	     18
#define RS_TAG_MOUNTS	     19
#define RS_TAG_UNSEEN	     20
#define RS_TAG_TRACE_REFUSED 21
