"""slurm.conf of the development cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Node:
    """A node: a slurmd on this machine."""

    name: str
    feature: str
    """Its feature, for constraints."""
    port: int


def slurm_conf(
    folder: Path, host: str, user: str, nodes: Sequence[Node], port: int, cpus: int, memory_mb: int, max_array_size: int
) -> str:
    """Return the text of slurm.conf.

    Args:
        folder: of the cluster, for everything that it writes.
        host: this machine's name.
        user: that runs the daemons.
        nodes: at least one.
        port: of slurmctld.
        cpus: cores that each node claims to have, whatever the machine has.
        memory_mb: memory that each node claims to have, MB.
        max_array_size: limit of job arrays.
    """
    lines = {
        "ClusterName": "hpclbfl-dev",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": user,
        "SlurmdUser": user,
        "SlurmctldPort": port,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # A requeued job starts only after its old credentials have expired, by default 120 s.
        "AuthInfo": f"socket={folder}/munge/socket,cred_expire=5",
        "StateSaveLocation": f"{folder}/state",
        "SlurmdSpoolDir": f"{folder}/%n/spool",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/%n/slurmd.pid",
        "SlurmctldLogFile": f"{folder}/slurmctld.log",
        "SlurmdLogFile": f"{folder}/%n/slurmd.log",
        # With a common folder the nodes of one machine would share PMIx's sockets.
        "TmpFS": f"{folder}/%n/tmp",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SlurmdParameters": "config_overrides",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "KillWait": 10,
        "MaxArraySize": max_array_size,
        "SchedulerParameters": "bf_interval=1,sched_interval=1",
    }
    text = [f"{key}={value}" for key, value in lines.items()]
    text += [
        f"NodeName={node.name} NodeHostname={host} NodeAddr=127.0.0.1 Port={node.port} CPUs={cpus} "
        f"RealMemory={memory_mb} Feature={node.feature} State=UNKNOWN"
        for node in nodes
    ]
    text.append("PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    return "\n".join(text) + "\n"
