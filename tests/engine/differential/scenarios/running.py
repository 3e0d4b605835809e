"""
Containers: what runs in them, as whom, and how they end.
"""

from __future__ import annotations

from tests.engine.differential.side import BASE, Side


def commands(side: Side) -> None:
    """Exit codes, users, folders, environment, what docker puts into a container."""
    side.run("sh", "-c", "echo out; echo err >&2; exit 3")
    side.run("/nonexistent")
    side.run("/etc/passwd")
    side.run("sh", "-c", "kill -9 $$")
    side.run("sh", "-c", "id; pwd; env | sort", options=("-u", "33:44", "-w", "/new/dir"))
    side.run("id", options=("-u", "www-data"))
    side.run("id", options=("-u", "nobody-at-all"))
    side.run("cat", "/etc/hostname", "/etc/resolv.conf", options=("--hostname", "named"))
    side.run("sh", "-c", "ls -A /dev /etc /; cat /proc/mounts | grep -c .")
    refused = side.engine.docker("run", "--storage-opt", "unknown=1", BASE, "true", check=False)
    side.note("an unknown storage option", [str(refused.returncode)])
    side.run("true", image=f"{side.repository}:none")


def executed(side: Side) -> None:
    """`docker exec`: the same questions, in a running, a paused and a stopped container."""
    side.started("d-exec")
    side.docker("exec", "d-exec", "sh", "-c", "echo out; echo err >&2; exit 4")
    side.docker("exec", "-u", "33", "-w", "/tmp", "-e", "A=b", "d-exec", "sh", "-c", "id; pwd; env")
    side.docker("exec", "d-exec", "/nonexistent")
    side.docker("exec", "-i", "d-exec", "sh", "-c", "cat > /in; wc -c /in", input="text\n" * 9000)
    side.do("pause", "d-exec")
    side.docker("exec", "d-exec", "true")
    side.do("unpause", "d-exec")
    side.diff("d-exec")
    side.do("stop", "-t", "0", "d-exec")
    side.docker("exec", "d-exec", "true")


def lifecycle(side: Side) -> None:
    """What a container wrote is there after stop, start, kill, restart; then it is gone."""
    trap = "trap 'exit 7' TERM; echo started >> /log; sleep 900 & wait"
    side.do("create", "--name", "d-life", "--network", "none", "differential/base:1")
    side.inspected("d-life")
    side.do("rm", "d-life")
    words = ("create", "--name", "d-life", "--network", "none", "differential/base:1", "sh", "-c")
    side.do(*words, trap)
    side.docker("start", "d-life")
    side.docker("start", "d-life")
    side.docker("stop", "d-life")
    side.docker("wait", "d-life")
    side.diff("d-life")
    side.docker("start", "d-life")
    side.docker("kill", "d-life")
    side.docker("restart", "d-life")
    side.docker("exec", "d-life", "cat", "/log")
    side.docker("rm", "d-life")
    side.docker("rename", "d-life", "d-renamed")
    side.docker("update", "--memory", "256m", "--memory-swap", "512m", "d-renamed")
    side.docker("ps", "-a", "--format", "{{.Names}} {{.Status}}")
    side.inspected("d-renamed")
    side.docker("rm", "-f", "d-renamed")
    side.docker("rm", "-f", "d-renamed")


def read_only(side: Side) -> None:
    """`--read-only`, with tmpfs and volumes that can be written."""
    options = ("--read-only", "--tmpfs", "/tmp:size=1m,mode=1770", "-v", "d-volume:/vol")
    script = (
        "touch /x; touch /etc/x; touch /tmp/x && ls -ld /tmp /tmp/x | cut -c-10;"
        "touch /vol/x && ls /vol; touch /data/x && ls /data; touch /dev/shm/x && echo shm;"
        "head -c 2000000 /dev/zero > /tmp/big; rm -r /usr/share/doc 2>&1 | grep -c Read-only"
    )
    side.run("sh", "-c", script, options=options)
    side.started("d-ro", "--read-only", "--tmpfs", "/run", "--tmpfs", "/odd/names")
    side.docker("exec", "d-ro", "ls", "-A", "/run", "/odd/names")
    side.docker("cp", "/etc/hostname", "d-ro:/x")
    side.diff("d-ro")
    side.do("commit", "d-ro", "differential/ro:1")
    side.layers("differential/ro:1")


def privileges(side: Side) -> None:
    """setuid, file capabilities and owners in the image do what they say, or not."""
    show = "/odd/copied/setuid; /odd/copied/capable -c \"print(open('/proc/self/status').read())\""
    script = f"({show}) | grep -E 'uid|CapEff'"
    for options in (
        ("-u", "33"),
        ("-u", "33", "--security-opt", "no-new-privileges"),
        ("-u", "33", "--cap-drop", "NET_BIND_SERVICE"),
    ):
        side.run("sh", "-c", script, options=options)
    side.started("d-priv", "-u", "33")
    side.docker("exec", "d-priv", "sh", "-c", "echo x >> /odd/copied/file; cat /odd/copied/file")
    side.docker("exec", "d-priv", "sh", "-c", "echo x >> /etc/passwd; rm /etc/issue; ls /root")
    side.python("d-priv", "import os; os.chown('/odd/copied/setuid', 33, 33)")
    side.docker("exec", "d-priv", "stat", "-c", "%a %u %g", "/odd/copied/setuid")
    side.docker("exec", "-u", "0", "d-priv", "sh", "-c", "echo >> /odd/copied/capable")
    side.docker("exec", "d-priv", "getcap", "/odd/copied/capable")
    side.diff("d-priv")
    side.do("commit", "d-priv", "differential/priv:1")
    side.layers("differential/priv:1")
    side.run("sh", "-c", script, options=("-u", "34"), image="differential/priv:1")


ALL = (commands, executed, lifecycle, read_only, privileges)
