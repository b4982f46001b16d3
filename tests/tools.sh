#!/bin/sh
# Test shardnet-ifup and shardnet-ifdown; run by test_bin.py in a network namespace of its own, with bin/ in PATH.
set -eu
mount -t sysfs none /sys

fail() { echo "line $1: $2"; exit 1; }
flags() { ip -o link show dev "$1"; }

ip tuntap add t0 mode tap
ip tuntap add t1 mode tap

shardnet-ifup t0
case $(flags t0) in *UP*) ;; *) fail $LINENO "t0 is not up" ;; esac
case $(flags t0) in *master*) fail $LINENO "t0 is on a bridge" ;; esac

SHARDNET_BRIDGE=br7 shardnet-ifup t0
case $(flags t0) in *"master br7"*) ;; *) fail $LINENO "t0 is not on br7" ;; esac
case $(flags br7) in *UP*) ;; *) fail $LINENO "br7 is not up" ;; esac

shardnet-ifup t1 br7 # the bridge exists by now
case $(flags t1) in *"master br7"*) ;; *) fail $LINENO "t1 is not on br7" ;; esac

shardnet-ifdown t0
case $(flags t0) in *UP* | *master*) fail $LINENO "t0 is up or on a bridge" ;; esac
case $(flags t1) in *"master br7"*) ;; *) fail $LINENO "t1 left with t0" ;; esac

shardnet-ifdown gone # no error
if shardnet-ifup gone 2>/dev/null; then fail $LINENO "an interface that is not there was switched on"; fi
if SHARDNET_BRIDGE=t1 shardnet-ifup t0 2>/dev/null; then fail $LINENO "a TAP was taken for a bridge"; fi
