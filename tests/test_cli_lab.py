"""The commands on a lab that runs, with real programs at the other end."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import deadline
import exchange
import labs

SHARDNET = Path(sys.executable).parent / "shardnet"
LAB = """
[stream vm1]
server = on
addr.type = unix
addr.path = vm1.sock

[stream vm2]
addr.type = unix
addr.path = nobody
up = off
vlan = 7
"""
FRAME = bytes.fromhex("02000000000a 02000000000b 88b5") + b"x" * 46  # 88b5: for experiments (IEEE 802)
PLUG = struct.pack(">H", len(FRAME)) + FRAME


def ran(running: labs.Lab, *words: str, **more) -> subprocess.CompletedProcess[str]:
    """Run a command on the lab; both of what it printed."""
    return subprocess.run(
        [SHARDNET, *words], env=running.environment, capture_output=True, text=True, timeout=60, **more
    )


@contextlib.contextmanager
def beside(running: labs.Lab, *words: str, **more):
    """Run a command on the lab for as long as the block."""
    process = subprocess.Popen([SHARDNET, *words], env=running.environment, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


def names(running: labs.Lab) -> set[str]:
    return {port["name"] for port in running.json("port", "list")}


@pytest.fixture
def demo(lab):
    return lab(LAB)


@pytest.fixture
def plugged(demo):
    """The lab with two plugs on it, left and right, each a process with pipes."""
    with contextlib.ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        both = [stack.enter_context(beside(demo, "plug", name, **pipes)) for name in ("left", "right")]
        demo.until_up("left", "right")
        yield demo, *both


# -- looking


def test_status_shows_the_ports_and_the_workers(demo):
    lines = demo.shardnet("status").splitlines()
    assert re.fullmatch(rf"lab lab: up \d+s, pid {demo.supervisor.pid}, {demo.file}, in {demo.run_dir}", lines[0])
    assert lines[2].split() == ["PORT", "KIND", "SWITCH", "MODE", "STATE", "RX", "TX", "DROPS", "MACS", "DETAIL"]
    assert lines[3].split()[:8] == ["vm1", "stream", "lan", "plain", "waiting", "0", "0", "0"]
    assert lines[4].split()[:6] == ["vm2", "stream", "lan", "access", "7", "off"]
    assert lines[6].split() == ["WORKER", "NAME", "PID", "STATE", "RESTARTS", "MEMORY", "PORTS"]


def test_status_as_json_is_the_answer_of_the_lab(demo):
    status = demo.json("status")
    assert (status["lab"], status["pid"]) == ("lab", demo.supervisor.pid)
    assert [port["name"] for port in status["ports"]] == ["vm1", "vm2"]
    assert {worker["state"] for worker in status["workers"]} == {"running"}


def test_a_command_that_asks_imports_neither_multiprocess_nor_pyroute2_nor_the_core(demo):
    asking = (
        "import sys; from shardnet.cli import main; assert main(sys.argv[1:]) == 0;"
        "print(*[name for name in ('multiprocess', 'pyroute2', 'dill', 'posix_ipc', 'shardnet._core', 'shardnet.lab')"
        " if name in sys.modules], file=sys.stderr)"
    )
    for words in (["status"], ["port", "list"], ["fdb"], ["drops"], ["list"], ["_complete", "ports"]):
        asked = subprocess.run(
            [sys.executable, "-c", asking, *words], env=demo.environment, capture_output=True, text=True
        )
        assert (asked.returncode, asked.stderr) == (0, "\n"), words


def test_list_finds_the_lab(demo):
    assert demo.shardnet("list").splitlines()[1].split()[:3] == ["lab", str(demo.supervisor.pid), "2"]
    (found,) = demo.json("list")
    assert (found["lab"], found["ports"], found["file"]) == ("lab", 2, str(demo.file))


def test_port_show_tells_everything_of_the_ports_named_and_3_for_an_unknown_one(demo):
    told = dict(line.split(maxsplit=1) for line in demo.shardnet("port", "show", "vm2").splitlines())
    assert (told["name"], told["up"], told["mode"], told["rx_frames"]) == ("vm2", "off", "access 7", "0")
    assert told["options"] == "addr.type=unix addr.path=nobody up=off vlan=7"
    assert demo.json("port", "show", "vm1", "vm2")[1]["name"] == "vm2"
    refused = ran(demo, "port", "show", "vm3")
    assert (refused.returncode, refused.stdout) == (3, "")
    assert re.fullmatch(r'shardnet: vm3: no such port \(did you mean "vm\d"\?\)\n', refused.stderr)


def test_no_headers_leaves_the_rows(demo):
    assert [line.split()[0] for line in demo.shardnet("port", "list", "--no-headers").splitlines()] == ["vm1", "vm2"]


def test_completion_asks_the_lab_for_names(demo):
    assert demo.shardnet("_complete", "ports").split() == ["vm1", "vm2"]
    assert demo.shardnet("_complete", "switches").split() == ["lan"]
    assert demo.shardnet("_complete", "--lab=", "labs").split() == ["lab"]
    assert "stream" in demo.shardnet("_complete", "kinds").split()


# -- changing


def test_ports_are_added_as_a_section_or_as_qemu_says_it_or_from_standard_input(demo):
    assert demo.shardnet("port", "add", "[stream a] server=on addr.type=unix addr.path=a.sock") == "a: added\n"
    spec = "stream,id=b,server=on,addr.type=unix,addr.path=b.sock"
    assert demo.json("port", "add", "--netdev", spec) == {"ports": ["b"]}
    text = "[stream c]\nserver = on\naddr.type = unix\naddr.path = c.sock\n[dgram d]\nlocal.type = unix\nlocal.path = d.sock\n"
    added = ran(demo, "port", "add", "--quiet", "-", input=text)
    assert (added.returncode, added.stdout, added.stderr) == (0, "", "")
    assert names(demo) == {"vm1", "vm2", "a", "b", "c", "d"}
    assert demo.shardnet("port", "remove", "a", "b") == "a: removed\nb: removed\n"
    assert names(demo) == {"vm1", "vm2", "c", "d"}


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (
            ["add", "[stream vm1] server=on addr.type=unix addr.path=x"],
            4,
            "shardnet: vm1: there is a port of this name",
        ),
        (["add", "[strem x]"], 1, 'unknown kind (did you mean "stream"?)'),
        (["add", "--netdev", "stream,id=x,sever=on"], 1, 'sever: unknown option (did you mean "server"?)'),
        (["remove", "nobody"], 3, "shardnet: nobody: no such port"),
        (["set", "vm1", "vlan=5000"], 1, "vlan = 5000"),
        (["set", "vm1", "frob=1"], 1, "frob: unknown option"),
        (["reset", "vm1"], 1, "only a failed port is reset"),
    ],
)
def test_a_refusal_of_the_lab_is_told_with_its_code_and_changes_nothing(demo, words, code, complaint):
    before = demo.json("port", "list")
    refused = ran(demo, "port", *words)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert complaint in refused.stderr
    assert "Traceback" not in refused.stderr
    assert demo.json("port", "list") == before


def test_a_port_is_set_and_put_back_and_switched_on_and_off(demo):
    assert demo.shardnet("port", "set", "vm1", "vlan=10", "max_macs=4") == "vm1: set\n"
    assert demo.port("vm1")["mode"] == "access 10"
    demo.shardnet("port", "set", "vm1", "vlan=")
    assert demo.port("vm1")["mode"] == "plain"
    assert demo.shardnet("port", "down", "vm1") == "vm1: down\n"
    assert demo.port("vm1")["up"] is False
    assert demo.shardnet("port", "up", "vm1", "vm2") == "vm1: up\nvm2: up\n"
    assert [port["up"] for port in demo.json("port", "list")] == [True, True]


def test_reload_says_what_it_will_do_and_then_does_it(demo):
    demo.file.write_text(demo.file.read_text() + "[stream new]\nserver = on\naddr.type = unix\naddr.path = new.sock\n")
    plan = demo.shardnet("reload", "--dry-run").splitlines()
    assert plan[0].split() == ["ACTION", "SECTION", "WHY"]
    assert plan[1].split(maxsplit=3)[:3] == ["add", "[stream", "new]"]
    assert "new" not in names(demo)
    assert demo.json("reload")["done"] is True
    assert "new" in names(demo)
    assert demo.shardnet("reload") == "nothing differs\n"
    demo.file.write_text("[stream new]\nserver = perhaps\n")
    refused = ran(demo, "reload")
    assert refused.returncode == 1
    assert f"{demo.file}:2: [stream new] server = perhaps" in refused.stderr


def test_events_are_told_as_they_happen_and_from_before(demo):
    past = ran(demo, "port", "down", "vm1")
    assert past.returncode == 0
    with beside(demo, "events", "--since", "3600", stdout=subprocess.PIPE, text=True) as events:
        first = events.stdout.readline()
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3}  \S+  \S", first)
        demo.shardnet("port", "add", "[stream late] server=on addr.type=unix addr.path=late.sock")
        for line in events.stdout:
            if "  late  " in line:
                break
        else:
            raise AssertionError("the events ended without the port")
        demo.shardnet("port", "remove", "late")
        for line in events.stdout:
            if "  late  removed" in line:
                break
        else:
            raise AssertionError("the events ended without the removal")
    with beside(demo, "events", "--since", "3600", "-o", "json", stdout=subprocess.PIPE, text=True) as events:
        assert any(json.loads(line).get("port") == "late" for line in events.stdout)


def test_restart_gives_a_new_lab_in_the_same_process(demo):
    before = demo.workers()
    demo.shardnet("port", "remove", "vm2")
    assert demo.shardnet("restart") == "lab: restarted\n"
    after = demo.workers()
    assert set(after) == {"vm1", "vm2"}
    assert not set(after.values()) & set(before.values())
    assert demo.json("status")["pid"] == demo.supervisor.pid


def test_stop_returns_when_nothing_is_left(demo):
    assert demo.shardnet("stop") == "lab: stopped\n"
    assert not demo.run_dir.exists()
    assert demo.supervisor.wait(10) == 0


def test_a_second_start_of_one_name_is_code_4_and_says_who_holds_it(demo):
    refused = ran(demo, "start", "-c", str(demo.file))
    assert refused.returncode == 4
    assert str(demo.supervisor.pid) in refused.stderr


def test_start_detached_returns_when_the_ports_are_open_and_takes_another_name(demo):
    started = ran(demo, "start", "--detach", "-c", str(demo.file), "--name", "second")
    assert started.returncode == 0, started.stderr
    second = {**demo.environment, "SHARDNET_LAB": "second"}
    try:
        status = json.loads(subprocess.check_output([SHARDNET, "status", "-o", "json"], env=second))
        assert (status["lab"], [port["name"] for port in status["ports"]]) == ("second", ["vm1", "vm2"])
        which = ran(demo, "list", "--no-headers").stdout.split()
        assert {"lab", "second"} <= set(which)
        without = {key: value for key, value in demo.environment.items() if key != "SHARDNET_LAB"}
        refused = subprocess.run([SHARDNET, "status"], env=without, capture_output=True, text=True)
        assert refused.returncode == 2
        assert "several labs are running: lab, second" in refused.stderr
    finally:
        subprocess.run([SHARDNET, "stop"], env=second, check=True)


def test_start_from_qemus_strings_alone(demo):
    spec = "stream,id=q,server=on,addr.type=unix,addr.path=q.sock"
    started = ran(demo, "start", "-d", "--name", "strings", "--netdev", spec, "--netdev", spec.replace("q", "r"))
    assert started.returncode == 0, started.stderr
    strings = {**demo.environment, "SHARDNET_LAB": "strings"}
    try:
        shown = subprocess.check_output([SHARDNET, "port", "list", "--no-headers"], env=strings, text=True)
        assert [line.split()[0] for line in shown.splitlines()] == ["q", "r"]
    finally:
        subprocess.run([SHARDNET, "stop", "-q"], env=strings, check=True)


# -- frames: plug, fdb, drops, capture


def test_a_frame_goes_from_plug_to_plug_and_is_learnt_counted_and_dropped_by_cause(plugged):
    demo, left, right = plugged
    left.stdin.write(PLUG)
    left.stdin.flush()
    deadline.readable(right.stdout.fileno(), "the frame on the right")
    assert os.read(right.stdout.fileno(), 4096) == PLUG
    assert demo.counters("left")["rx_frames"] == 1
    (entry,) = demo.json("fdb", "lan")
    assert (entry["mac"], entry["port"], entry["vlan"]) == ("02:00:00:00:00:0b", "left", 0)
    assert demo.shardnet("fdb", "--no-headers").split()[:4] == ["lan", "02:00:00:00:00:0b", "-", "left"]
    demo.shardnet("port", "down", "left")
    left.stdin.write(PLUG)
    left.stdin.flush()
    deadline.until(lambda: demo.json("drops", "left"), "the drop")
    assert demo.json("drops", "left") == [{"port": "left", "cause": "down", "frames": 1}]
    assert demo.shardnet("drops", "left").split() == ["PORT", "CAUSE", "FRAMES", "left", "down", "1"]
    assert ran(demo, "drops", "nobody").returncode == 3
    assert demo.shardnet("fdb", "--flush", "--port", "left") == "1\n"
    assert demo.json("fdb", "--flush") == {"flushed": 0}
    assert ran(demo, "fdb", "nowhere").returncode == 3


def test_a_plug_ends_with_its_input_or_with_the_lab_and_takes_the_port_along(plugged):
    demo, left, right = plugged
    left.stdin.close()
    assert left.wait(10) == 0
    deadline.until(lambda: "left" not in names(demo), "the port gone")
    demo.shardnet("stop")
    assert right.wait(10) == 69
    assert demo.supervisor.wait(10) == 0
    left.stdin = None


def test_a_plug_puts_the_flags_of_its_descriptors_back(demo):
    here, there = socket.socketpair()
    with here, there, beside(demo, "plug", "shared", stdin=there, stdout=there) as plug:
        demo.until_up("shared")
        deadline.until(lambda: fcntl.fcntl(there, fcntl.F_GETFL) & os.O_NONBLOCK, "the lab made it non-blocking")
        here.shutdown(socket.SHUT_RDWR)
        assert plug.wait(10) in (0, 69)
        assert not fcntl.fcntl(there, fcntl.F_GETFL) & os.O_NONBLOCK


@pytest.mark.needs("vde_switch", "vde_plug", "dpipe")
def test_a_plug_joins_the_lab_to_a_switch_of_vdes(plugged, tmp_path):
    demo, left, _ = plugged
    switch, pid = tmp_path / "ctl", tmp_path / "pid"
    subprocess.run(["vde_switch", "-s", switch, "-d", "-p", pid], check=True)
    number = int(deadline.until(lambda: pid.exists() and pid.read_text().strip(), "the switch"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    try:
        words = ["dpipe", "vde_plug", switch, "=", SHARDNET, "plug", "vde"]
        with (
            subprocess.Popen(words, env=demo.environment) as joined,
            subprocess.Popen(["vde_plug", switch], **pipes) as far,
        ):
            demo.until_up("vde")
            far.stdin.write(PLUG)
            far.stdin.flush()
            deadline.readable(left.stdout.fileno(), "the frame from the far side of VDE's switch")
            assert os.read(left.stdout.fileno(), 4096) == PLUG
            far.kill()
            os.kill(number, signal.SIGTERM)  # and with the switch go the plug, dpipe and the port
            joined.wait(10)
        deadline.until(lambda: "vde" not in names(demo), "the port gone")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("words", [["plug"], ["capture", "vm1"]])
def test_binary_is_not_for_a_terminal(demo, words):
    master, slave = os.openpty()
    refused = subprocess.run(
        [SHARDNET, *words], env=demo.environment, stdin=slave, stdout=slave, stderr=subprocess.PIPE, text=True
    )
    os.close(slave)
    os.close(master)
    assert refused.returncode == 1
    assert "not for a terminal" in refused.stderr


@pytest.mark.needs("tcpdump")
def test_a_capture_pipes_into_tcpdump_and_tells_its_counts(plugged):
    demo, left, right = plugged
    words = ["tcpdump", "-n", "-l", "-r", "-"]
    with (
        beside(demo, "capture", "left", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as capture,
        subprocess.Popen(words, stdin=capture.stdout, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tcpdump,
    ):
        _until_event(demo, "capture of left")
        left.stdin.write(PLUG)
        left.stdin.flush()
        deadline.readable(tcpdump.stdout.fileno(), "the frame in tcpdump")
        assert b"02:00:00:00:00:0b > 02:00:00:00:00:0a" in tcpdump.stdout.readline()
        capture.send_signal(signal.SIGINT)
        assert capture.wait(10) == 0
        assert capture.stderr.read() == b"1 frames written, 0 lost\n"


def test_a_capture_ends_when_its_reader_does_and_leaves_the_port_alone(plugged, tmp_path):
    demo, left, right = plugged
    reader, writer = os.pipe()
    with beside(demo, "capture", "left", "-q", stdout=writer, stderr=subprocess.PIPE) as capture:
        os.close(writer)
        _until_event(demo, "capture of left")
        os.close(reader)

        def ended() -> bool:
            left.stdin.write(PLUG)
            left.stdin.flush()
            return capture.poll() is not None

        deadline.until(ended, "the end of the capture")
        assert capture.stderr.read() == b""
    deadline.readable(right.stdout.fileno(), "frames on the right")


def test_a_capture_of_an_unknown_port_is_code_3(demo, tmp_path):
    refused = ran(demo, "capture", "nobody", "-w", str(tmp_path / "x.pcapng"))
    assert (refused.returncode, refused.stdout) == (3, "")


def _until_event(demo: labs.Lab, text: str) -> None:
    with beside(demo, "events", "--since", "60", stdout=subprocess.PIPE, text=True) as events:
        for line in events.stdout:
            if text in line:
                return
    raise AssertionError(f"the events ended without: {text}")


# -- exec


@pytest.mark.needs("root", "ping", "/dev/net/tun")
def test_exec_runs_commands_that_reach_each_other(demo):
    with beside(demo, "exec", "--address", "10.77.0.1/24", "one", "--", "sleep", "60"):
        demo.until_up("one")
        pinged = ran(demo, "exec", "--address", "10.77.0.2/24", "--", *exchange.PING, "10.77.0.1")
        assert pinged.returncode == 0, pinged.stdout + pinged.stderr
        exchange.all_answered(pinged.stdout)
    deadline.until(lambda: names(demo) == {"vm1", "vm2"}, "the ports gone with their commands")


@pytest.mark.needs("root", "/dev/net/tun")
def test_exec_configures_the_interface_as_it_was_told(demo):
    words = [
        "--address",
        "10.77.0.1/24",
        "--address",
        "fd77::1/64",
        "--route",
        "10.77.0.9",
        "--route",
        "192.168.7.0/24=10.77.0.8",
    ]
    script = "ip -o addr; ip route; cat /sys/class/net/lo/operstate; ip link show dev lan7"
    more = ["--mac", "02:00:00:00:00:07", "--mtu", "9000", "--ifname", "lan7", "--switch", "lan"]
    said = ran(demo, "exec", *words, *more, "--", "sh", "-c", script).stdout
    for part in (
        "inet 10.77.0.1/24",
        "inet6 fd77::1/64",
        "default via 10.77.0.9",
        "192.168.7.0/24 via 10.77.0.8",
        "mtu 9000",
        "link/ether 02:00:00:00:00:07",
    ):
        assert part in said
    named = ran(demo, "exec", "vm9", "--", "cat", "/proc/net/dev", "/sys/class/net/lo/address")
    assert "eth0:" in named.stdout


@pytest.mark.needs("root", "/dev/net/tun")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command"], 127),
        (["/dev/null"], 126),
    ],
)
def test_exec_passes_the_exit_code_on(demo, command, code):
    assert ran(demo, "exec", "--", *command).returncode == code


@pytest.mark.needs("root", "/dev/net/tun")
def test_exec_hands_a_signal_to_its_command(demo):
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    with beside(demo, "exec", "--", "sh", "-c", script, stdout=subprocess.PIPE) as command:
        assert command.stdout.readline() == b"ready\n"
        command.send_signal(signal.SIGTERM)
        assert command.wait(10) == 5


@pytest.mark.needs("root", "/dev/net/tun")
def test_a_command_ends_with_the_exec_that_was_killed(demo):
    with beside(demo, "exec", "--", "sh", "-c", "echo $$; exec sleep 60", stdout=subprocess.PIPE) as command:
        pid = int(command.stdout.readline())
        command.kill()
        deadline.ended(pid, "the end of the command")


@pytest.mark.needs("root", "ping", "setpriv", "unshare", "curl")
def test_exec_needs_no_root(tmp_path):
    """As nobody, with a lab of its own and a /dev/net/tun that is open to all, as systems that start udev have it."""
    user = "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+dac_read_search --ambient-caps=+dac_read_search"
    port = labs.free_port()
    (tmp_path / "page").write_text("fetched without rights")
    tmp_path.chmod(0o755)
    script = f"""set -e
        mknod {tmp_path}/tun c 10 200; chmod 666 {tmp_path}/tun; mount --bind {tmp_path}/tun /dev/net/tun
        mkdir $SHARDNET_RUN_DIR; chown 65534 $SHARDNET_RUN_DIR
        cd /
        exec {user} sh -c '
            {SHARDNET} start -d || exit 9
            {SHARDNET} exec --address 10.77.0.1/24 -- sh -c "echo as \\$(id -u); exec sleep 60" & one=$!
            {SHARDNET} exec --address 10.77.0.2/24 -- ping -c 5 -i 0.2 10.77.0.1; code=$?
            python3 -m http.server {port} --bind 127.0.0.1 -d {tmp_path} & web=$!
            {SHARDNET} exec -- curl -sS --retry 20 --retry-connrefused http://10.0.2.2:{port}/page || code=$?
            kill $one $web; {SHARDNET} stop
            exit $code'"""
    directory = Path(f"/tmp/sn-user{os.getpid()}")
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script],
            env={**os.environ, "SHARDNET_RUN_DIR": str(directory)},
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        subprocess.run(["rm", "-rf", directory], check=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as 0" in done.stdout
    assert "bytes from 10.77.0.1" in done.stdout
    assert "fetched without rights" in done.stdout


@pytest.mark.needs("root")
def test_exec_is_a_guest_of_the_user_network_of_its_switch(lab):
    running = lab("[user net0]\nnet = 192.168.9.0/24\nmtu = 1400\ndns-servers = 192.0.2.53\n")
    script = "ip -4 -o address show eth0; ip -4 route; cat /etc/resolv.conf /sys/class/net/eth0/mtu; stat -c %a /etc/resolv.conf"
    said = running.shardnet("exec", "--", "sh", "-c", script)
    number = int(re.search(r"inet 192\.168\.9\.([0-9]+)/24", said)[1])
    assert 64 < number < 255 and "default via 192.168.9.2 dev eth0" in said
    assert said.endswith("nameserver 192.168.9.3\nnameserver fec0::3\n1400\n644\n")  # the lab's, which asks 192.0.2.53
    assert "192.168.9.3" not in Path("/etc/resolv.conf").read_text()
    alone = running.shardnet("exec", "--no-config", "--", "sh", "-c", "ip -4 -o address show eth0; ip -4 route")
    assert alone == ""
    other = running.shardnet("exec", "--switch", "other", "--", "sh", "-c", "ip -4 -o address show eth0")
    assert other == ""


# -- qemu


def test_qemu_prints_what_attaches_a_guest(demo):
    line = demo.shardnet("qemu", "vm1", "--qemu", "7.2")
    path = demo.run_dir / "vm1.sock"
    address = line.strip().rpartition("mac=")[2]
    assert line == (
        f"-netdev stream,id=sn-vm1,server=off,addr.type=unix,addr.path={path} "
        f"-device virtio-net-pci,netdev=sn-vm1,mac={address}\n"
    )
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", address)
    assert demo.json("qemu", "vm1", "--qemu", "8.1.0", "-m", "e1000")[1].endswith(",reconnect=1")
    assert demo.json("qemu", "vm1", "--qemu", "9.2")[1].endswith(",reconnect-ms=1000")
    assert ran(demo, "qemu", "vm1", "--qemu", "6.1").returncode == 1
    assert ran(demo, "qemu", "nobody").returncode == 3


@pytest.mark.needs("qemu-system-x86_64")
def test_qemu_starts_with_the_words_and_the_port_comes_up(demo):
    words = demo.json("qemu", "vm1")
    machine = ["qemu-system-x86_64", "-S", "-display", "none", "-nodefaults", "-net", "none"]
    with subprocess.Popen([*machine, *words], stdin=subprocess.DEVNULL) as qemu:
        try:
            demo.until_up("vm1")
        finally:
            qemu.kill()


@pytest.mark.needs("root", "/dev/net/tun")
def test_qemu_has_no_way_to_a_tap_or_to_a_plug(lab):
    running = lab("[tap t]\n")
    refused = ran(running, "qemu", "t")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("shardnet: tap t: a TAP is held by the lab")
    reader, writer = os.pipe()
    with beside(running, "plug", "p", stdin=reader, stdout=subprocess.PIPE):
        running.until_up("p")
        assert "made of a client's descriptors" in ran(running, "qemu", "p").stderr
    os.close(reader)
    os.close(writer)
