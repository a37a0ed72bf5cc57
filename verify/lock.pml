/*
 * The lock protocol of src/, as a model for spin. Each STEP at the end of this file
 * makes at most one system call whose effect another process can see. Between any two
 * steps, every other process may take steps too, and at any time a process may
 * be killed or forked. README.md maps the steps to functions and lists what is omitted.
 *
 * `run` checks that the promises hold, and that each change in mutants.diff breaks one.
 */

#include "settings.pml"

/* --------------------------------------------------------------------- state */

#define NOBODY 0
#define NONE 0

/* A lock belongs to an open file description. A process opens at most one for each port. */
#define OF(q) (1 + (q))                    /* the one that q opened */
#define LEFT_TO(q) (1 + PROCESSES + (q))   /* one that its opener closed while others had
                                              inherited it; named after one of the heirs */

/* A record that keeps a lease by itself has the value of that lease. Otherwise it is
 * NONE: a `held` record only informs. */
#define DELEGATED_TO(q) (1 + PROCESSES + (q))
#define PASSED_TO(q) (1 + 2 * PROCESSES + (q)) /* which should inherit the descriptor */
#define DELEGATED_TO_THE_DEAD (1 + 4 * PROCESSES)
#define PASSED_TO_THE_DEAD (2 + 4 * PROCESSES)

/* The holder of a lease is OF(q), the process q; DELEGATED_TO(q), the process that it was
 * delegated to; or one of these. */
#define HELD_TWICE(q) (1 + 3 * PROCESSES + (q))   /* process q, which it was passed to, by lock
                                                     and record; by record alone: PASSED_TO(q) */
#define BY_DESCRIPTOR (3 + 4 * PROCESSES)         /* all processes with the descriptor */

/* A line reserves the port, or the root directory of the reservation is gone. */
#define COUNTS 1
#define GONE_ROOT 2

#define IS(kind, v) (kind(0) <= (v) && (v) < kind(PROCESSES))
#define IS_DELEGATED(v) (IS(DELEGATED_TO, v) || (v) == DELEGATED_TO_THE_DEAD)
#define IS_PASSED(v) (IS(PASSED_TO, v) || (v) == PASSED_TO_THE_DEAD)
#define IS_OF_THE_DEAD(v) ((v) == DELEGATED_TO_THE_DEAD || (v) == PASSED_TO_THE_DEAD)
#define PROCESS_IN(v) (((v) - 1) % PROCESSES)

/* The inode of the file at the path, if there is one. Other files were unlinked and
 * exist while a process has them open: at most one per process. */
#define AT_PATH 1
#define INODES (PROCESSES + 1)

typedef Port {
    bit exists;                /* there is a file at the path */
    byte lock[INODES + 1];     /* by inode */
    byte record[INODES + 1];   /* by inode: its content */
    bit extended[INODES + 1];  /* by inode: whether the file is long enough for it to count */
    byte fd[PROCESSES];        /* the inode that each process has opened, or 0 */
    /* Only if processes fork: */
    FORKING(byte inherited[PROCESSES];) /* the description that each inherited */
    FORKING(byte left[PROCESSES];) /* the inode of the description LEFT_TO each, or 0 */
    FORKING(bit orphaned[PROCESSES];) /* whether it was closed without a release */
    FORKING(bit copy[PROCESSES];) /* each has a copy of the parent's FreePort */
    /* Only if ports are reserved: the line after the record, by inode */
    NAMED(byte line[INODES + 1];)
    /* The promises to users. No process ever reads these. */
    NAMED(bit reserved;)
    byte lease;
    byte alone;                /* the process whose attempt has met no interference */
}

/* The next step of a process. */
mtype = { DEAD, IDLE, OPEN, MAKE, LOCK, FSTAT, STAT, READ, JUDGE, PROBE, UNPROBE, RECORD,
          CUT, UNLINK, ERASE, UNLOCK, CLOSE };
/* The task that the step is part of. */
mtype = { NOTHING, ACQUIRE, VISIT };

typedef Process {
    mtype next = IDLE;
    mtype task = NOTHING;
    byte on;                   /* the port of the task */
    bit is_long;               /* what it has read of the file: whether it is long */
    byte seen;                 /* what it has read of the file: its record */
    NAMED(bit by_name;)        /* it requests the name that the port is reserved for */
    NAMED(byte line;)          /* the line that it has read */
}

Port port[PORTS];
Process proc[PROCESSES];

#define me proc[_pid]
#define here port[me.on]
#define mine here.fd[_pid]

#include "promises.pml"
#include "kernel.pml"

/* ----------------------------------------------------------------- decisions */

/* The evidence that an observer has about the process in the record. It may be unable to
 * determine whether that process is alive, for example from another pid namespace. */
#define DETERMINED 1
#define UNDETERMINED 0
#define ALIVE(evidence) (evidence == DETERMINED && !IS_OF_THE_DEAD(me.seen))
#define GONE(evidence) (evidence == DETERMINED && IS_OF_THE_DEAD(me.seen))

/* A delegated lease ends when its process is proven gone. A passed record counts only if
 * its process is known to be alive; otherwise the free lock decides. */
#define KEEPS_THE_PORT(evidence) (IS_DELEGATED(me.seen) && !GONE(evidence) || \
                                  IS_PASSED(me.seen) && ALIVE(evidence))
/* A reserved port is for callers that request its name, any other port for callers without a name.
 * A reservation counts unless its root is proven gone. */
#ifdef NAMES
#define IS_FOR_ME(evidence) (me.by_name -> me.line != NONE : \
                             me.line == NONE || me.line == GONE_ROOT && evidence == DETERMINED)
/* A reservation is not truncated. Release keeps every line; an attempt removes one that does not count. */
#define KEEPS_THE_LINE (me.line != NONE && (me.task == VISIT || me.by_name))
#define MAY_REMOVE_LINE (me.line != COUNTS)
#define BY_NAME me.by_name
#else
#define IS_FOR_ME(evidence) true
#define KEEPS_THE_LINE false
#define MAY_REMOVE_LINE true
#define BY_NAME false
#endif
/* Clean removes a file, and release ends a lease, only if its process is proven gone. */
#define MAY_REMOVE(evidence) (me.seen == NONE || GONE(evidence))
#define MAY_RELEASE(evidence) GONE(evidence)

/* An attempt does not read the record of a short file. So a record that keeps a lease by
 * itself makes the file long. */
#define READ_OR_PROBE (me.task == ACQUIRE && !me.is_long && !BY_NAME -> PROBE : READ)

/* --------------------------------------------------------------------- steps */

inline rest()
{
    me.next = IDLE;
    me.task = NOTHING;
    me.on = 0;
    me.is_long = false;
    NAMED(me.by_name = false;)
    NAMED(me.line = NONE;)
    me.seen = NONE
}

/* Only the lock remains to be released. */
inline let_go()
{
    me.task = NOTHING;
    me.is_long = false;
    NAMED(me.by_name = false;)
    NAMED(me.line = NONE;)
    me.seen = NONE;
    me.next = UNLOCK
}

/* pwrite(2) does not truncate: a long file stays long. */
inline write_record(p, what, long)
{
    port[p].record[port[p].fd[_pid]] = what;
    port[p].extended[port[p].fd[_pid]] = port[p].extended[port[p].fd[_pid]] || long
}

inline acquire(p)
{
    task_begins(p, ACQUIRE);
    open_step()
}

#ifdef NAMES
inline acquire_by_name(p)
{
    me.by_name = true;
    task_begins(p, ACQUIRE);
    open_step()
}
#endif

/* Cleans up, or ends a lease that is not held by a lock. */
inline visit(p)
{
    task_begins(p, VISIT);
    open_step()
}

inline opened()
{
    mine = AT_PATH;
    me.next = LOCK
}

inline open_step()
{
    if
    :: here.exists && me.task == ACQUIRE ->
        opened();
        SAY_AT("%c wants a lease: opens the file of port %d\n", me.on)
    :: here.exists && me.task != ACQUIRE ->
        opened();
        SAY_AT("%c cleans up or releases: opens the file of port %d\n", me.on)
    :: !here.exists && me.task == ACQUIRE ->
        SAY_AT("%c wants a lease: there is no file of port %d\n", me.on);
        me.next = MAKE
    :: else ->
        rest();
        SAY("%c finds that the file is gone\n")
    fi
}

/* A new file is created under another name, then renamed, and never over another file. */
inline make_step()
{
    if
    :: !here.exists ->
        here.exists = true;
        opened();
        SAY_AT("%c creates the file of port %d\n", me.on)
    :: else ->
        me.next = OPEN;
        SAY("%c finds that another process has created it\n")
    fi
}

inline lock_step()
{
    if
    :: here.lock[mine] == NOBODY ->
        here.lock[mine] = OF(_pid);
        me.next = FSTAT;
        SAY("%c locks it\n")
    :: else ->
        SAY("%c finds it locked, and gives up\n");
        attempt_fails();
        close_own(me.on, false);
        rest()
    fi
}

/* A file that was unlinked after it was opened is not the lock file any more. */
inline fstat_step()
{
    if
    :: mine == AT_PATH ->
        me.is_long = here.extended[mine];
        me.next = READ_OR_PROBE;
        if
        :: me.is_long -> SAY("%c sees that it is linked, and long\n")
        :: else -> SAY("%c sees that it is linked, and short\n")
        fi
    :: else -> replaced()
    fi
}

/* If link counts are not reliable, the file is compared with the one at the path. */
inline stat_step()
{
    if
    :: mine == AT_PATH ->
        me.next = READ_OR_PROBE;
        SAY("%c sees that it is the one at the path\n")
    :: else -> replaced()
    fi
}

/* The task opens the file again. */
inline replaced()
{
    SAY("%c sees that it is no longer at the path\n");
    I3(here.alone != OF(_pid));
    me.is_long = false;
    NAMED(me.line = NONE;)
    me.seen = NONE;
    me.next = UNLOCK
}

inline read_step()
{
    NAMED(me.line = here.line[mine];)
    me.seen = (here.extended[mine] -> here.record[mine] : NONE);
    me.next = JUDGE;
    if
    :: me.seen == NONE -> SAY("%c reads the record: it keeps no lease\n")
    :: me.seen == DELEGATED_TO_THE_DEAD ->
        SAY("%c reads the record: delegated to a process that is dead\n")
    :: me.seen == PASSED_TO_THE_DEAD ->
        SAY("%c reads the record: passed to a process that is dead\n")
    :: IS(DELEGATED_TO, me.seen) ->
        printf("%c reads the record: delegated to %c\n", NAME(_pid), NAME(PROCESS_IN(me.seen)))
    :: else ->
        printf("%c reads the record: passed to %c\n", NAME(_pid), NAME(PROCESS_IN(me.seen)))
    fi
}

/* An attempt continues if the record does not keep the port. */
inline judge_step(evidence)
{
    if
    :: me.seen == NONE
    :: me.seen != NONE && evidence == DETERMINED ->
        SAY("%c determines whether that process is alive\n")
    :: else -> SAY("%c cannot determine whether that process is alive\n")
    fi;
    if
    :: !IS_FOR_ME(evidence) ->
        SAY("%c treats the port as reserved\n");
        here.alone = NOBODY;
        let_go()
    :: IS_FOR_ME(evidence) && KEEPS_THE_PORT(evidence) ->
        SAY("%c treats the port as leased\n");
        if
        :: LIMIT_OF_I3(evidence) -> here.alone = NOBODY
        :: else
        fi;
        attempt_fails();
        let_go()
    :: else ->
        me.next = PROBE;
        /* Kept only for the documented limit of I1. */
        me.seen = (IS(PASSED_TO, me.seen) && evidence == UNDETERMINED -> me.seen : NONE)
    fi
}

inline judge_to_clean()
{
    me.seen = NONE;
    me.next = UNLINK
}

/* Release considers the process gone, so it does not intend to end a lease. */
inline judge_to_release()
{
    SAY("%c considers that process gone\n");
    me.seen = NONE;
    me.next = ERASE
}

/* Release with force intends to end the lease. */
inline judge_to_force()
{
    me.next = ERASE
}

inline probe_step()
{
    SAY_AT("%c binds port %d\n", me.on);
    probe_begins();
    me.next = UNPROBE
}

/* A program that does not use leases has bound it. */
inline probe_fails()
{
    SAY_AT("%c cannot bind port %d\n", me.on);
    probe_begins();
    here.alone = NOBODY;
    let_go()
}

inline unprobe_step()
{
    SAY("%c closes that socket\n");
    me.next = RECORD
}

/* It was only a check, which writes nothing, or other ports of the same request are not
 * available. */
inline unprobe_only()
{
    SAY("%c closes that socket, and does not take the port\n");
    here.alone = NOBODY;
    let_go()
}

inline record_step()
{
    unseen_lease_ends();
    write_record(me.on, NONE, false);
    if
    :: me.is_long && !KEEPS_THE_LINE ->
        me.next = CUT;
        SAY("%c writes the record\n")
    :: else ->
        SAY_AT("%c writes the record, and has leased port %d\n", me.on);
        lease_begins(OF(_pid));
        rest()
    fi
}

/* The lease belongs to process x from the beginning. */
inline record_for(x)
{
    unseen_lease_ends();
    write_record(me.on, DELEGATED_TO(x), true);
    printf("%c writes the record, and has leased port %d for %c\n",
           NAME(_pid), 4000 + me.on, NAME(x));
    lease_begins(DELEGATED_TO(x));
    let_go()
}

inline cut_step()
{
    here.extended[mine] = false;
    NAMED(here.line[mine] = NONE;)
    if
    :: me.task == ACQUIRE ->
        SAY_AT("%c truncates the file, and has leased port %d\n", me.on);
        lease_begins(OF(_pid));
        rest()
    :: else ->
        SAY("%c truncates the file\n");
        let_go()
    fi
}

inline unlink_step()
{
    SAY("%c unlinks the file at the path\n");
    if
    :: here.exists -> detach(me.on)
    :: else
    fi;
    let_go()
}

inline erase_step()
{
    SAY("%c erases the record\n");
    write_record(me.on, NONE, false);
    /* The user intends to end this lease, and no other. */
    if
    :: me.seen != NONE && here.lease == me.seen -> here.lease = NOBODY
    :: else
    fi;
    me.seen = NONE;
    if
    :: me.is_long && !KEEPS_THE_LINE -> me.next = CUT
    :: else -> let_go()
    fi
}

#ifdef NAMES
/* The attempt was made to reserve the port. */
inline reserve_step()
{
    SAY_AT("%c writes the line, and has reserved port %d\n", me.on);
    here.line[mine] = COUNTS;
    here.extended[mine] = true;
    here.reserved = true;
    here.alone = NOBODY;
    let_go()
}

/* A record that keeps the port stays complete. */
inline judge_to_unreserve(evidence)
{
    SAY_AT("%c removes the reservation of port %d\n", me.on);
    here.extended[mine] = KEEPS_THE_PORT(evidence);
    here.line[mine] = NONE;
    here.reserved = false;
    let_go()
}

inline root_goes(p)
{
    SAY_AT("%c removes the root directory of the reservation of port %d\n", p);
    port[p].reserved = false;
    for (a : 1 .. INODES) {
        port[p].line[a] = (port[p].line[a] == COUNTS -> GONE_ROOT : port[p].line[a])
    }
    for (a : 0 .. PROCESSES - 1) {
        if
        :: proc[a].on == p && proc[a].line == COUNTS -> proc[a].line = GONE_ROOT
        :: else
        fi
    }
}
#endif

/* If processes do not fork, no process can observe the closing of an unlocked file. */
inline unlocked()
{
    FORKING(me.next = CLOSE)
    NOT_FORKING(close_step())
}

inline unlock_step()
{
    if
    :: here.lock[mine] == OF(_pid) ->
        here.lock[mine] = NOBODY;
        SAY("%c unlocks the file\n")
    :: else
    fi;
    unlocked()
}

inline close_step()
{
    SAY("%c closes the file\n");
    close_own(me.on, false);
    if
    :: me.task == NOTHING -> rest()
    :: else -> me.next = OPEN
    fi
}

/* Unlocking also ends the lock for all duplicates of the descriptor. */
inline release(p)
{
    me.on = p;
    here.lease = NOBODY;
    SAY_AT("%c unlocks the file, to release port %d\n", p);
    here.lock[mine] = NOBODY;
    unlocked()
}

/* The record is written before the lock is released. */
inline delegate(p, x)
{
    me.on = p;
    printf("%c delegates port %d to %c\n", NAME(_pid), 4000 + p, NAME(x));
    write_record(p, DELEGATED_TO(x), true);
    here.lease = DELEGATED_TO(x);
    SAY("%c writes the record\n");
    me.next = UNLOCK
}

/* Process x should inherit the descriptor: a child, or the process itself once it has
 * called exec, which keeps pid, start time and descriptor. */
inline pass_to(p, x)
{
    printf("%c passes the lease of port %d to %c: writes the record\n",
           NAME(_pid), 4000 + p, NAME(x));
    write_record(p, PASSED_TO(x), true);
    port[p].lease = HELD_TWICE(x)
}

inline close_descriptor(p)
{
    SAY_AT("%c closes the descriptor that is the lease of port %d\n", p);
    close_own(p, true)
}

inline into_descriptor(p)
{
    SAY_AT("%c turns its lease of port %d into a descriptor\n", p);
    port[p].lease = BY_DESCRIPTOR
}

/* A forked copy only closes its descriptor. */
inline end_copy(p)
{
    SAY_AT("%c drops its copy of the lease of port %d\n", p);
    close_inherited(p);
    copy_ends(p)
}

inline execute()
{
    SAY("%c executes a program, which closes all descriptors\n");
    close_all()
}

#include "symmetry.pml"

/* ----------------------------------------------------------------- processes */

#define CAN_BEGIN(p) (me.next == IDLE && port[p].fd[_pid] == 0)
#define HAS_LEASE(p) (me.next == IDLE && port[p].lease == OF(_pid) && port[p].fd[_pid] != 0)
#define HAS_DESCRIPTOR(p) \
    (me.next == IDLE && port[p].fd[_pid] != 0 && \
     (port[p].lease == BY_DESCRIPTOR || IS(HELD_TWICE, port[p].lease)))
#define LIVES(x) (proc[x].next != DEAD)
#define JUDGES(what) (me.next == JUDGE && me.task == what)
#ifdef NAMES
#define MATTERS_WHETHER_SEEN (me.seen != NONE || me.line != NONE)
#else
#define MATTERS_WHETHER_SEEN (me.seen != NONE)
#endif
/* Whether a decision is possible on any evidence. */
#define MAY(decision) (decision(DETERMINED) || decision(UNDETERMINED))

#define PASS_TO(p, x) STEP(pass_to, PASSING && HAS_LEASE(p) && LIVES(x), pass_to(p, x))
#define DELEGATE(p, x) STEP(delegate, HAS_LEASE(p) && LIVES(x), delegate(p, x))
#define RECORD_FOR(p, x) STEP(record_for, me.next == RECORD && LIVES(x), record_for(x))
#define FORKED(p, q) STEP(forked, me.next == DEAD && q != _pid && CAN_FORK(q), forked(q))

#define TASKS(p) \
    STEP(acquire, CAN_BEGIN(p), acquire(p)) \
    STEP(visit, CAN_BEGIN(p) && port[p].exists, visit(p)) \
    STEP(release, HAS_LEASE(p), release(p)) \
    EACH_PROCESS(PASS_TO, p) \
    STEP(close_descriptor, HAS_DESCRIPTOR(p), close_descriptor(p)) \
    EACH_PROCESS(DELEGATE, p)
#define NAME_TASKS(p) \
    STEP(acquire_by_name, CAN_BEGIN(p), acquire_by_name(p)) \
    STEP(root_goes, port[p].reserved, root_goes(p))
#define FORK_TASKS(p) \
    STEP(end_copy, port[p].copy[_pid], end_copy(p)) \
    STEP(into_descriptor, HAS_LEASE(p), into_descriptor(p))

active [PROCESSES] proctype process()
{
    do
    EACH_PORT(TASKS)

    STEP(open, me.next == OPEN, open_step())
    STEP(make, me.next == MAKE, make_step())
    STEP(lock, me.next == LOCK, lock_step())
    STEP(fstat, me.next == FSTAT, fstat_step())
    STEP(stat, me.next == STAT, stat_step())
    STEP(read, me.next == READ, read_step())
    STEP(judge, JUDGES(ACQUIRE), judge_step(DETERMINED))
    STEP(judge_unseen, JUDGES(ACQUIRE) && MATTERS_WHETHER_SEEN, judge_step(UNDETERMINED))
    STEP(judge_to_clean, JUDGES(VISIT) && MAY(MAY_REMOVE) && MAY_REMOVE_LINE, judge_to_clean())
    STEP(judge_to_release, JUDGES(VISIT) && me.seen != NONE && MAY(MAY_RELEASE), judge_to_release())
    STEP(judge_to_force, JUDGES(VISIT) && me.seen != NONE, judge_to_force())
    STEP(let_go, JUDGES(VISIT), let_go())
    STEP(probe, me.next == PROBE, probe_step())
    STEP(probe_fails, me.next == PROBE, probe_fails())
    STEP(unprobe, me.next == UNPROBE, unprobe_step())
    STEP(unprobe_only, me.next == UNPROBE, unprobe_only())
    STEP(record, me.next == RECORD, record_step())
    EACH_PROCESS(RECORD_FOR, me.on)
    STEP(cut, me.next == CUT, cut_step())
    NAMED(STEP(reserve, me.next == RECORD && !me.by_name, reserve_step()))
    NAMED(STEP(judge_to_unreserve, JUDGES(VISIT) && me.line != NONE, judge_to_unreserve(DETERMINED)))
    STEP(unlink, me.next == UNLINK, unlink_step())
    STEP(erase, me.next == ERASE, erase_step())
    STEP(unlock, me.next == UNLOCK, unlock_step())
    STEP(close, me.next == CLOSE, close_step())

    STEP(die, me.next != DEAD, die())
    STEP(begin, me.next == DEAD, begin())
    FORKING(EACH_PROCESS(FORKED, 0))
    FORKING(STEP(execute, me.next != DEAD && HAS_ANY(_pid), execute()))
    FORKING(EACH_PORT(FORK_TASKS))
    NAMED(EACH_PORT(NAME_TASKS))
    od
}
