#!/usr/bin/env bash
# Runs a whole device with no hardware: emulated.sh RECORDS PORT [options]
#
# Builds the emulated board's firmware, boots it in QEMU, lets it deliver RECORDS numbered records to the gateway that
# listens on loopback PORT, and exits 0 once all of them are acknowledged. It waits for a gateway that is not there yet
# and survives one that is killed and started again.
#
#   --id NAME         the device's name (default emulated-1)
#   --flash FILE      keep the device's flash in FILE; the same file again is the same device after a power cut
#   --qmp SOCKET      QEMU's control socket (system_reset is the board's reset button)
#   --pidfile FILE    where QEMU writes its process id (a SIGKILL there is a power cut)
#   --slow-flash      a flash as slow as a real one, so that a power cut has time to come in the middle of a write
#   --timeout SECONDS give up after so long, with exit code 124 (default 3600, 0 is never)
#   --pace-us N       microseconds between two records (default 0, as fast as it goes)
#   --sleep-ms N      send, then sleep for N ms, and come back by a reset, as a board on a battery (default: connected)
#   --tls PEM         over TLS to the gateway's TLS listener on PORT: whom the device trusts, and its certificate and key
#   --tls-name NAME   for which the gateway has a certificate (default localhost)
#   --ota IMAGE       boot through the boot loader; a new flash has the firmware IMAGE, made by `ota-image`, which can then be
#                     updated through the gateway
#   --picture FILE    send this file as well, in parts behind the records, as a board with a camera would
#   --arg KEY=VALUE   another argument of the firmware
#
# The device's log comes on standard error. Exit codes: 0 all acknowledged, 2 something is missing or mistyped,
# 101 the firmware panicked, 124 out of time, else what QEMU ended with (137: it was killed).
set -euo pipefail

fail() { echo "emulated.sh: $*" >&2; exit 2; }
usage() { sed -n '2,${/^#/!q; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}"; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
board=mps2-an385
numbers=() options=() arguments=() features=() timeout_s=3600
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --id | --flash | --qmp | --pidfile | --timeout | --pace-us | --sleep-ms | --tls | --tls-name | --ota | --picture | --arg) [ $# -ge 2 ] || fail "$1 wants a value" ;;&
    --id) arguments+=("id=$2"); shift ;;
    --flash | --qmp | --pidfile | --picture) options+=("$1" "$2"); shift ;;
    --timeout) timeout_s=$2; shift ;;
    --pace-us) arguments+=("pace-us=$2"); shift ;;
    --sleep-ms) arguments+=("sleep-ms=$2"); shift ;;
    --tls) [ -r "$2" ] || fail "cannot read '$2'"; arguments+=("tls=$(realpath "$2")"); features=(--features tls); shift ;;
    --tls-name) arguments+=("tls-name=$2"); shift ;;
    --ota) [ -r "$2" ] || fail "cannot read '$2'"; board=mps2-an385-boot; options+=(--image "$2"); shift ;;
    --slow-flash) arguments+=(slow-flash=true) ;;
    --arg) arguments+=("$2"); shift ;;
    -*) fail "unknown option $1 (try --help)" ;;
    *) numbers+=("$1") ;;
  esac
  shift
done
[ ${#numbers[@]} -eq 2 ] || { usage >&2; exit 2; }
for number in "${numbers[@]}" "$timeout_s"; do
  [[ $number =~ ^[0-9]{1,9}$ ]] || fail "'$number' is not a number"
done
[ "${numbers[1]}" -ge 1 ] && [ "${numbers[1]}" -le 65535 ] || fail "a port is 1 to 65535, and not ${numbers[1]}"
command -v qemu-system-arm >/dev/null || fail "QEMU is missing: apt-get install qemu-system-arm"

# A cold build says something every now and then; what cargo says comes out only if it fails.
scratch=$(mktemp -d)
builder=
stop() {
  [ -z "$builder" ] || kill "$builder" 2>/dev/null || true
  rm -rf "$scratch"
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# Firmware with another feature lies elsewhere, as somebody may be starting the ordinary one right now.
[ ${#features[@]} -eq 0 ] || export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$here/$board/target}/tls"
echo "emulated.sh: building the firmware of $board (minutes the first time, then a second)" >&2
"$here/build" "$board" "${features[@]}" >"$scratch/elf" 2>"$scratch/log" &
builder=$!
for ((waits = 1; ; waits++)); do
  kill -0 "$builder" 2>/dev/null || break
  sleep 0.2
  ((waits % 50 != 0)) || echo "emulated.sh: $(grep -c Compiling "$scratch/log" || true) crates compiled" >&2
done
if ! wait "$builder"; then
  cat "$scratch/log" >&2
  fail "the firmware does not build"
fi
builder=
elf=$(tail -n 1 "$scratch/elf")
rm -rf "$scratch"
trap - EXIT HUP INT TERM

# The seed makes devices differ that start in the same moment.
seed=$(od -An -N8 -tu8 /dev/urandom | tr -d ' ')
exec "$here/mps2-an385/run" "$elf" --timeout "$timeout_s" "${options[@]}" -- \
  "records=${numbers[0]}" "port=${numbers[1]}" "seed=$seed" "${arguments[@]}"
