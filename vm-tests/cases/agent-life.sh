# Three volumes, two receivers and an agent: one receiver goes and comes back, the agent is killed, the job is renamed, paused, aborted.
# needs: dm-snapshot tool:python3 binary
# backend: any

make_vg vg a
make_vg rvg b
volumes=(one two three)
for name in "${volumes[@]}"; do
  make_lv vg/$name 24M
  make_lv rvg/near-$name 24M
  make_lv rvg/far-$name 24M
done
mount_fs ext4 /dev/vg/one /tmp/one
noise 3000000 > /tmp/one/file
noise_at /dev/vg/two 2 4
noise_at /dev/vg/three 8 4
sync

# ---------------------------------------------------------------- who takes part

agent_key=$(blockferry pair key --state-dir "$STATE" | grep -o 'sha256:[0-9a-f]*' | head -n 1)
receiver_file() { # NAME PORT
  echo "listen = \"127.0.0.1:$2\""
  echo "state_dir = \"/tmp/state-$1\""
  local name
  for name in "${volumes[@]}"; do printf '[[replica]]\nname = "%s"\ndevice = { lv = "rvg/%s-%s" }\n' "$name" "$1" "$name"; done
  printf '[[client]]\nname = "prod1"\nkey = "%s"\nallow = [{ replica = "*" }]\n' "$agent_key"
}
receiver_file near 7421 > /tmp/near.toml
receiver_file far 7422 > /tmp/far.toml
start_receiver() { # NAME
  setsid blockferry receiver --config /tmp/$1.toml >> /tmp/$1.log 2>&1 < /dev/null &
  eval "pid_$1=\$!"
  wait_until grep -q 'listening on' /tmp/$1.log
}
stop_receiver() { # NAME
  local pid="pid_$1"
  kill "${!pid}"
  wait "${!pid}" || true
  : > /tmp/$1.log
}
start_agent() {
  setsid blockferry agent --config /tmp/agent.toml >> /tmp/agent.log 2>&1 < /dev/null &
  agent_pid=$!
  wait_until status_says "\"agent_pid\":$agent_pid[,}]"
}
cat > /tmp/page << 'END'
#!/bin/sh
tr -d '\n' >> /tmp/pages
echo >> /tmp/pages
END
chmod +x /tmp/page
: > /tmp/pages
agent_file() { # JOB
  cat << END
state_dir = "$STATE"
[[receiver]]
name = "near"
address = "127.0.0.1:7421"
pin = "$(blockferry pair key --state-dir /tmp/state-near | grep -o 'sha256:[0-9a-f]*' | head -n 1)"
[[receiver]]
name = "far"
address = "127.0.0.1:7422"
pin = "$(blockferry pair key --state-dir /tmp/state-far | grep -o 'sha256:[0-9a-f]*' | head -n 1)"
[[job]]
name = "$1"
receivers = ["near", "far"]
volumes = [$(for name in "${volumes[@]}"; do printf '{ source = "vg/%s", replica = "%s" }, ' "$name" "$name"; done)]
every = "6s"
rpo = "2min"
retry = { initial = "1s", max = "2s" }
stall_timeout = "20s"
[[job.notify]]
on = ["failed", "recovered"]
exec = ["/tmp/page"]
END
}

# ---------------------------------------------------------------- what is asked

monitor_says() { # CODE
  local code=0
  said=$(blockferry monitor --config /tmp/agent.toml 2>&1) || code=$?
  [ "$code" = "$1" ]
}
was_paged_for() { grep -q "\"$1\"" /tmp/pages; } # EVENT
status_says() { # PATTERN
  said=$(blockferry status --json --config /tmp/agent.toml 2>&1) && grep -Eq -- "$1" <<< "$said"
}
replicas_are() { # NAME VOLUME…: byte for byte what the volumes are
  local receiver=$1 name
  shift
  for name; do cmp -s /dev/vg/$name /dev/rvg/$receiver-$name || return 1; done
}
generation_of() { # STATE VOLUME: that of its replica, once committed
  blockferry status --json --state-dir "$1" | python3 -c '
import json, sys
lines = [json.loads(line) for line in sys.stdin]
print(next(line["generation"] for line in lines if line["type"] == "replica" and line["target"].endswith("-" + sys.argv[1])))' "$2"
}
is_after() { [ "$(generation_of "$1" "$2")" -gt "$3" ]; } # STATE VOLUME GENERATION
modes_of() { # JOB VOLUME: how its passes that committed got there: none, journal, or direct for a first copy
  blockferry history "$1" --json --last 1000 --config /tmp/agent.toml | python3 -c '
import json, sys
runs = [line for line in map(json.loads, sys.stdin) if line["type"] == "run"]
print(*(leg["mode"] for run in runs for leg in run["legs"] if leg["replica"] == sys.argv[1] and leg["result"] == "committed"), sep="\n")' "$2"
}
nothing_runs() { status_says '"is":"paused"' && [ -z "$(snapshots_of_ours)" ]; } # a run is told of before a pause
comes_to_rest() { # after a pause; also when the agent had just looked, and begins once more
  wait_until nothing_runs
  read -rt 3 -u "$pause" || true
  wait_until nothing_runs
}
has_run() { [ -n "$(modes_of "$1" "$2")" ]; } # JOB VOLUME

# ---------------------------------------------------------------- the story

start_receiver near
start_receiver far
agent_file db > /tmp/agent.toml
blockferry config check --config /tmp/agent.toml
start_agent
wait_until monitor_says 0
wait_until replicas_are near two three
wait_until replicas_are far two three

echo "# a receiver is away: the other goes on, somebody is told, and what it missed arrives when it is back"
: > /tmp/pages
stop_receiver far
noise_at /dev/vg/two 10 2
wait_until replicas_are near two
wait_until was_paged_for failed
wait_until status_says '"receiver":"far"'
if monitor_says 0; then fail "monitor says OK while a receiver is away"; fi
if replicas_are far two; then fail "who is away has it all the same"; fi
start_receiver far
wait_until replicas_are far two
wait_until was_paged_for recovered
wait_until monitor_says 0

echo "# the agent is killed in the middle of things"
noise 2000000 > /tmp/one/more
noise_at /dev/vg/three 1 6
wait_until snapshot_node vg
kill -9 "$agent_pid"
wait "$agent_pid" 2> /dev/null || true
start_agent
wait_until replicas_are near two three
wait_until replicas_are far two three

echo "# renamed: another label, the same replicas"
before=$(generation_of /tmp/state-near two)
agent_file renamed > /tmp/agent.toml
kill -HUP "$agent_pid"
wait_until grep -q 'configuration reloaded' /tmp/agent.log
wait_until status_says '"job":"renamed"|"name":"renamed"'
noise_at /dev/vg/two 4 1
wait_until replicas_are near two
wait_until is_after /tmp/state-near two "$before" # the bytes are there before their generation counts
wait_until has_run renamed two
if modes_of renamed two | grep -x direct; then fail "the renamed job began anew"; fi

echo "# paused: nothing goes; resumed: it does"
blockferry pause renamed --reason maintenance --config /tmp/agent.toml
comes_to_rest
noise_at /dev/vg/three 12 1
read -rt 13 -u "$pause" || true # two intervals and more
if replicas_are near three; then fail "a paused job ran"; fi
blockferry resume renamed --config /tmp/agent.toml
wait_until replicas_are near three
wait_until replicas_are far three

echo "# a receiver stands still: a second run is told to wait, and abort ends the first"
kill -STOP "$pid_far"
noise_at /dev/vg/two 6 1
wait_until status_says 'running'
# It may come between two tries of the first, and is one itself then: after it the agent, which asks every five seconds, has its turn.
is_refused_for_the_first() {
  local code=0
  blockferry run renamed --config /tmp/agent.toml || code=$?
  case $code in
    5) return 0 ;;
    3 | 4)
      read -rt 7 -u "$pause" || true
      return 1
      ;;
    *) fail "a second run ended with $code" ;;
  esac
}
wait_until is_refused_for_the_first
wait_until blockferry abort renamed --config /tmp/agent.toml # a busy agent asks to be asked again
kill -CONT "$pid_far"
blockferry resume renamed --config /tmp/agent.toml 2> /dev/null || true
wait_until replicas_are far two

echo "# the end: everything at rest, and the same everywhere"
umount /tmp/one
wait_until replicas_are near one two three
wait_until replicas_are far one two three
wait_until monitor_says 0
blockferry pause renamed --reason 'the end' --config /tmp/agent.toml
comes_to_rest # a run that is ended before it is acknowledged has something left to say
kill "$agent_pid"
wait "$agent_pid" || true
blockferry doctor --state-dir "$STATE"
assert_no_snapshot_of_ours
for name in "${volumes[@]}"; do
  assert_same_bytes /dev/vg/$name /dev/rvg/near-$name
  assert_same_bytes /dev/vg/$name /dev/rvg/far-$name
done
blockferry history --config /tmp/agent.toml | tail -n 5
