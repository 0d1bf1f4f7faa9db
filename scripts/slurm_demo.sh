#!/usr/bin/env bash
# A sweep on a real SLURM of one node: submit, preempt, requeue, finish. It sets the cluster up in a folder of its own and
# takes it down again; needs root and Debian's slurm-wlm (apt-get install slurm-wlm), and skips itself without.
#     scripts/slurm_demo.sh [FOLDER]
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
for tool in sbatch slurmctld slurmd munged; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || { echo "skipped: there is no $tool (apt-get install slurm-wlm)"; exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "skipped: setting up a SLURM node needs root"; exit 77; }
export PATH=$PATH:/usr/sbin
work=${1:-$(mktemp -d)}
mkdir -p "$work"/{state,spool,log,munge}
python=$root/.venv/bin/python

# --- a cluster of this machine -----------------------------------------------------------------------------------
head -c 1024 /dev/urandom > "$work/munge/key"
chmod 700 "$work/munge"; chmod 600 "$work/munge/key"
socket=$work/munge/socket
munged --force --key-file="$work/munge/key" --socket="$socket" --pid-file="$work/munge/pid" \
    --log-file="$work/munge/log" --seed-file="$work/munge/seed"
cat > "$work/slurm.conf" <<CONF
ClusterName=demo
SlurmctldHost=$(hostname -s)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/log/slurmctld.log
SlurmdLogFile=$work/log/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
MinJobAge=3600
JobRequeue=1
NodeName=$(hostname -s) CPUs=$(nproc) RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
down() {
    scancel --me 2>/dev/null || true
    for name in slurmd slurmctld munge/; do
        file=$work/$name.pid; [ "$name" = munge/ ] && file=$work/munge/pid
        [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
    done
}
trap down EXIT
slurmctld; slurmd
for _ in $(seq 60); do sinfo --noheader --format=%T 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo

# --- a sweep of two jobs on it -------------------------------------------------------------------------------------
cd "$work"
export WANDB_MODE=offline PYTHONPATH=$root
"$python" - <<'PY'
import random
words = [b"sparse ", b"attention ", b"window ", b"column ", b"summary ", b"block "]
open("corpus.txt", "wb").write(b"".join(random.Random(0).choices(words, k=3000)))
PY
steps=${STEPS:-3000}
"$python" -m src.train -m hydra/launcher=slurm hydra.launcher.cpus=1 hydra.launcher.name=demo attention=fixed,strided \
    data=bytes data.path="$work/corpus.txt" data.context=64 data.batch_size=4 data.workers=0 attention.stride=8 attention.summary=2 \
    model.depth=2 model.width=16 model.heads=2 trainer.accelerator=cpu trainer.max_steps="$steps" trainer.val_every="$steps" \
    trainer.checkpoint_every=100000 logger=wandb logger.sample_bytes=0 logger.attention_picture=false paths.output_dir="$work/runs" \
    > "$work/sweep.log" 2>&1 &
sweep=$!
run=$work/runs/sweeps/demo/bytes-fixed-d2-fp32
until grep -q "steps of" "$run/train.log" 2>/dev/null && [ -s "$run/metrics.csv" ]; do sleep 1; kill -0 $sweep || { cat "$work/sweep.log"; exit 1; }; done
job=$(sed 's/.*"job": "\([0-9]*\)".*/\1/' "$run/slurm.json")
echo "--- both jobs run"; squeue --format="%.6i %.24j %.10T %.8M"
echo "--- job $job is preempted as before its time limit: scancel --signal=USR2 $job"
scancel --signal=USR2 "$job"
until [ "$(scontrol show job "$job" | grep -o 'Restarts=[0-9]*')" = Restarts=1 ]; do sleep 1; done
echo "--- SLURM has put it back into the queue"; scontrol show job "$job" | grep -o 'JobName=.*\|JobState=[A-Z]*\|Restarts=[0-9]*'
wait $sweep || { cat "$work/sweep.log" "$run.log"; exit 1; }
echo "--- the sweep has ended"; cat "$work/sweep.log"
echo "--- the preempted run, as its log tells it"; grep -h "going on from\|stopped by\|steps of" "$run/train.log" | cut -c 1-160
echo "--- run directories:"; (cd "$work/runs/sweeps/demo" && ls -d bytes-*/)
echo "--- wandb ids of the preempted run (a folder for each start, one id):"
(cd "$run/wandb" && ls -d offline-run-* | sed 's/.*-//' | sort | uniq -c)
