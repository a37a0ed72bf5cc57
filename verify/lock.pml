/*
 * The lock protocol of src/, as a model for spin. Each STEP at the end of this file
 * makes at most one system call whose effect another process can see. Between any two
 * steps, every other process may take steps of its own, and at any time a process may
 * be killed or forked. README.md maps the steps to functions and says what is left out.
 *
 * Set with -D:
 *   PROCESSES  number of processes at a time, 2 or 3
 *   PORTS      number of ports, 1 or 2
 *   FORK       processes also fork, execute programs and pass descriptors on
 *   NO_PASSING processes do not pass leases to processes that they record
 *   SYMMETRY   explore only one of several states that differ only in which process is
 *              which; the names in a trail are then meaningless
 *   PROMISE    number of the only promise to check; all are checked without it
 *   COVERAGE   print each step the first time it is taken
 * and the name of a variant or mutant in mutants.pml.
 */

#ifndef PROCESSES
#define PROCESSES 3 /* at a time: a process that dies makes room for another */
#endif
#ifndef PORTS
#define PORTS 1
#endif
#ifndef PROMISE
#define PROMISE 0
#endif

/* --------------------------------------------------------------------- state */

#define NOBODY 0
#define NONE 0

/* A lock belongs to an open file description. A process opens at most one for each port. */
#define OF(q) (1 + (q))                    /* the one that q opened */
#define LEFT_TO(q) (1 + PROCESSES + (q))   /* one that its opener closed while others had
                                              inherited it, named after one of those */

/* A record either keeps a lease by itself, and then has the value of that lease, or is
 * NONE: a `held` record only informs. */
#define DELEGATED_TO(q) (1 + PROCESSES + (q))
#define PASSED_TO(q) (1 + 2 * PROCESSES + (q)) /* which was to inherit the descriptor */
#define DELEGATED_TO_THE_DEAD (1 + 4 * PROCESSES)
#define PASSED_TO_THE_DEAD (2 + 4 * PROCESSES)

/* A lease belongs to process q, OF(q), or to process DELEGATED_TO(q), or is */
#define HELD_TWICE(q) (1 + 3 * PROCESSES + (q))   /* passed to q, by lock and record; by the
                                                     record alone, it is PASSED_TO(q) */
#define BY_DESCRIPTOR (3 + 4 * PROCESSES)         /* that of all who have the descriptor */

#define IS(kind, v) (kind(0) <= (v) && (v) < kind(PROCESSES))
#define IS_DELEGATED(v) (IS(DELEGATED_TO, v) || (v) == DELEGATED_TO_THE_DEAD)
#define IS_PASSED(v) (IS(PASSED_TO, v) || (v) == PASSED_TO_THE_DEAD)
#define IS_OF_THE_DEAD(v) ((v) == DELEGATED_TO_THE_DEAD || (v) == PASSED_TO_THE_DEAD)
#define PROCESS_IN(v) (((v) - 1) % PROCESSES)

/* The inode of the file at the path, if there is one. Other files were unlinked and
 * exist while a process has them open: at most one each. */
#define AT_PATH 1
#define INODES (PROCESSES + 1)

typedef Port {
    bit exists;                /* there is a file at the path */
    byte lock[INODES + 1];     /* by inode */
    byte record[INODES + 1];   /* by inode: what it says, */
    bit extended[INODES + 1];  /* and whether the file is long enough for that to count */
    byte fd[PROCESSES];        /* the inode that each process has opened, or 0 */
#ifdef FORK
    byte inherited[PROCESSES]; /* the description that each has from its parent */
    byte left[PROCESSES];      /* the inode of the description LEFT_TO each, or 0 */
    bit orphaned[PROCESSES];   /* and whether that was without a release */
    bit copy[PROCESSES];       /* a copy of the parent's FreePort is there too */
#endif
    /* What users were promised. No process ever reads these. */
    byte lease;
    byte alone;                /* the process whose attempt no other has interfered with */
}

/* What a process does next, */
mtype = { DEAD, IDLE, OPEN, MAKE, LOCK, FSTAT, STAT, READ, JUDGE, PROBE, UNPROBE, RECORD,
          CUT, UNLINK, ERASE, UNLOCK, CLOSE, LATE_RECORD, PEEK };
/* and as part of what. */
mtype = { NOTHING, ACQUIRE, VISIT };

typedef Process {
    mtype next = IDLE;
    mtype task = NOTHING;
    byte on;                   /* at which port */
    bit is_long;               /* what it has seen of the file: its length, */
    byte seen;                 /* and its record */
}

Port port[PORTS];
Process proc[PROCESSES];

#define me proc[_pid]
#define here port[me.on]
#define mine here.fd[_pid]

/* Local variables of the inlines, used within one step and cleared after it. */
byte a, b, c, d, e, inode, heir, found;
int first, second;

/* For the trail. */
#define NAME(q) ('A' + (q))
#define SAY(text) printf(text, NAME(_pid))
#define SAY_AT(text, p) printf(text, NAME(_pid), 4000 + p)

/* ----------------------------------------------------------------- decisions */

/* The decisions of the protocol, one macro each, so that mutants.pml can replace one at
 * a time. */

/* The order of the steps of an attempt. */
#define BEGIN_ATTEMPT open_step()
#define AFTER_OPEN LOCK
#define AFTER_LOCK FSTAT
#define AFTER_FSTAT READ
#define AFTER_STAT READ
#define AFTER_READ JUDGE
#define AFTER_JUDGE PROBE
#define AFTER_PROBE RECORD
/* Clean and release lock the file too. */
#define AFTER_OPEN_TO_VISIT AFTER_OPEN

/* A new file is created under another name, then renamed, and never over another file. */
#define IF_MISSING me.next = MAKE
#define BEFORE_RENAME skip

/* A file that was unlinked after it was opened is not the lock file any more. */
#define IS_LINKED (mine == AT_PATH)

/* An attempt does not read the record of a short file. So a record that counts by itself
 * makes the file long. */
#define NEED_NOT_READ (me.task == ACQUIRE && !me.is_long)
#define DELEGATED_IS_LONG true
#define PASSED_IS_LONG true

/* What an observer knows of the process in the record. It may be able to tell whether
 * that process lives, or not: for example because it is in another pid namespace. */
#define DETERMINED 1
#define UNDETERMINED 0
#define ALIVE(evidence) (evidence == DETERMINED && !IS_OF_THE_DEAD(me.seen))
#define GONE(evidence) (evidence == DETERMINED && IS_OF_THE_DEAD(me.seen))

/* A delegated lease ends when its process is proven gone. A passed record counts only if
 * its process is known to be alive; otherwise the free lock decides. */
#define KEEPS_THE_PORT(evidence) (IS_DELEGATED(me.seen) && !GONE(evidence) || \
                                  IS_PASSED(me.seen) && ALIVE(evidence))
/* Clean removes a file, and release ends a lease, only if its process is proven gone. */
#define MAY_REMOVE(evidence) (me.seen == NONE || GONE(evidence))
#define MAY_RELEASE(evidence) GONE(evidence)
/* Release with force ends it in any case. */
#define MAY_FORCE true
#define BEFORE_UNLINK skip

/* A call that only looks writes nothing. */
#define AFTER_LOOKING skip

/* The record is written before the lock is released. */
#define DELEGATE write_delegated()
/* A release unlocks, which ends the lock of all duplicates of the descriptor too. */
#define RELEASE here.lock[mine] = NOBODY
/* A forked copy only closes. */
#define END_OF_A_COPY(p) skip

/* A new process has another start time than the dead one whose pid it is given. */
#define ON_BEGIN skip

/* Which inherited descriptors the model keeps track of once the opener has closed its
 * own. It matters only that one has the lock: no other process will lock it. */
#define MATTERS(p, description) (port[p].lock[inode] == description)

/* The documented limits of what is promised. */
/* I1, I2: the lease was passed to a process, and its lock has been closed. So it is the
 * record alone, and this attempt could not determine whether that process is alive.
 * (`judge_step` forgets what it has seen in every other case.) */
#define LIMIT_OF_I1 (me.seen != NONE && here.lease == me.seen)
/* I3: this attempt could not determine whether the process is alive that the port is
 * delegated to. */
#define LIMIT_OF_I3(evidence) (IS_DELEGATED(me.seen) && evidence == UNDETERMINED)

/* Steps that only a mutant has. */
#define OTHER_STEPS

#include "mutants.pml"

/* ------------------------------------------------------------------ promises */

/* By the names that are reported. As long as they hold, they add no states. */
bit I1_exclusive = 1;
bit I2_not_probed_while_leased = 1;
bit I3_free_after_death = 1;
bit I4_free_after_release = 1;
bit I5_copy_ends_nothing = 1;
bit there_are_enough_inodes = 1;

#define CHECK(number, name, holds) \
    if \
    :: PROMISE == 0 || PROMISE == number -> name = (holds); assert(name) \
    :: else \
    fi
#define I1(holds) CHECK(1, I1_exclusive, holds)
#define I2(holds) CHECK(2, I2_not_probed_while_leased, holds)
#define I3(holds) CHECK(3, I3_free_after_death, holds)
#define I4(holds) CHECK(4, I4_free_after_release, holds)
#define I5(holds) CHECK(5, I5_copy_ends_nothing, holds)

/* I1: when a lease begins, there is no other.
 * I2: nor has any other process the port still bound. */
inline lease_begins(whose)
{
    I1(here.lease == NOBODY);
    for (a : 0 .. PROCESSES - 1) {
        I2(a == _pid || proc[a].next != UNPROBE || proc[a].on != me.on)
    }
    here.lease = whose;
    here.alone = NOBODY
}

/* The attempt writes its record. The process that it could not see has then lost its own
 * record, and with it the lease, even if the attempt is killed before its lease begins. */
inline unseen_lease_ends()
{
    if
    :: LIMIT_OF_I1 -> here.lease = NOBODY
    :: else
    fi;
    me.seen = NONE
}

/* I2: no process binds a port that is leased. */
inline probe_begins()
{
    I2(here.lease == NOBODY || LIMIT_OF_I1)
}

/* I3, I4: an attempt succeeds if it begins while the port is not leased and no other
 * process is at it, and no other comes before it ends. Here a task begins: an attempt
 * that may be alone, or one that interferes. */
inline task_begins(p, what)
{
    me.task = what;
    me.on = p;
    found = what == ACQUIRE && here.lease == NOBODY;
    for (a : 0 .. PROCESSES - 1) {
        found = found && (a == _pid || proc[a].on != p ||
                          proc[a].next == IDLE || proc[a].next == DEAD);
#ifdef FORK
        /* A child of a process that was killed during an attempt may have the lock. As
         * with a lease, that child has to end too. */
        found = found && !(here.orphaned[a] && here.lock[here.left[a]] == LEFT_TO(a))
#endif
    }
    here.alone = (found -> OF(_pid) : NOBODY)
}

/* I3, I4: and here an attempt fails. */
inline attempt_fails()
{
    if
    :: here.alone == OF(_pid) ->
        found = false;
#ifdef FORK
        for (a : 0 .. PROCESSES - 1) {
            found = found || (here.lock[mine] == LEFT_TO(a) && !here.orphaned[a])
        }
#endif
        I4(!found); /* it was released, and a process still has the lock */
        I3(found);
        here.alone = NOBODY
    :: else
    fi
}

/* I5: what a copy in a forked child has just done has ended no lease. */
inline copy_ends(p)
{
    for (a : 0 .. PROCESSES - 1) {
        I5(port[p].lease != OF(a) || port[p].lock[port[p].fd[a]] == OF(a))
    }
    I5(!(port[p].lease == BY_DESCRIPTOR || IS(HELD_TWICE, port[p].lease)) ||
       port[p].lock[AT_PATH] != NOBODY)
}

/* -------------------------------------------------------------------- kernel */

/* found: a process has opened inode n. */
inline find(p, n)
{
    found = false;
    for (a : 0 .. PROCESSES - 1) {
        found = found || port[p].fd[a] == n
    }
}

/* No process will come to an unlinked file again that no process has opened itself,
 * even if some have inherited it. */
inline reclaim(p, n)
{
    find(p, n);
    if
    :: !found && n != AT_PATH ->
        port[p].lock[n] = NOBODY;
        port[p].record[n] = NONE;
        port[p].extended[n] = false;
#ifdef FORK
        for (a : 0 .. PROCESSES - 1) {
            for (b : 0 .. PROCESSES - 1) {
                if
                :: port[p].left[a] == n && port[p].inherited[b] == LEFT_TO(a) ->
                    port[p].inherited[b] = NOBODY;
                    port[p].copy[b] = false
                :: else
                fi
            }
            if
            :: port[p].left[a] == n ->
                port[p].left[a] = 0;
                port[p].orphaned[a] = false
            :: else
            fi
        }
#endif
    :: else
    fi
}

/* unlink(2): the file is no longer at the path, and gets another number. */
inline detach(p)
{
    inode = AT_PATH;
    do
    :: inode++;
       there_are_enough_inodes = inode <= INODES;
       assert(there_are_enough_inodes);
       find(p, inode);
       if
       :: !found -> break
       :: else
       fi
    od;
    for (a : 0 .. PROCESSES - 1) {
        port[p].fd[a] = (port[p].fd[a] == AT_PATH -> inode : port[p].fd[a]);
#ifdef FORK
        port[p].left[a] = (port[p].left[a] == AT_PATH -> inode : port[p].left[a])
#endif
    }
    port[p].lock[inode] = port[p].lock[AT_PATH];
    port[p].lock[AT_PATH] = NOBODY;
    port[p].record[inode] = port[p].record[AT_PATH];
    port[p].record[AT_PATH] = NONE;
    port[p].extended[inode] = port[p].extended[AT_PATH];
    port[p].extended[AT_PATH] = false;
    port[p].exists = false;
    reclaim(p, inode)
}

/* The process after which a description of `inode` is named has closed it. From now on
 * it is named after another that inherited it. Its lock ends with the last of them. */
inline leave(p, description, as_orphan)
{
    heir = PROCESSES;
#ifdef FORK
    for (b : 0 .. PROCESSES - 1) {
        if
        :: port[p].inherited[b] == description && MATTERS(p, description) ->
            heir = (heir == PROCESSES -> b : heir);
            port[p].inherited[b] = LEFT_TO(heir)
        :: port[p].inherited[b] == description && !MATTERS(p, description) ->
            port[p].inherited[b] = NOBODY;
            port[p].copy[b] = false
        :: else
        fi
    }
    if
    :: heir != PROCESSES ->
        port[p].left[heir] = inode;
        port[p].orphaned[heir] = as_orphan
    :: else
    fi;
#endif
    if
    :: port[p].lock[inode] == description && heir != PROCESSES ->
        port[p].lock[inode] = LEFT_TO(heir)
    :: port[p].lock[inode] == description && heir == PROCESSES ->
        port[p].lock[inode] = NOBODY;
        if
        :: port[p].lease == BY_DESCRIPTOR && inode == AT_PATH -> port[p].lease = NOBODY
        :: IS(HELD_TWICE, port[p].lease) && inode == AT_PATH ->
            port[p].lease = PASSED_TO(PROCESS_IN(port[p].lease))
        :: else
        fi
    :: else
    fi;
    reclaim(p, inode)
}

/* close(2) of what the process opened. */
inline close_own(p, as_orphan)
{
    inode = port[p].fd[_pid];
    port[p].fd[_pid] = 0;
    leave(p, OF(_pid), as_orphan)
}

#ifdef FORK
/* close(2) of what it inherited. */
inline close_inherited(p)
{
    d = port[p].inherited[_pid];
    port[p].inherited[_pid] = NOBODY;
    port[p].copy[_pid] = false;
    if
    :: d == LEFT_TO(_pid) ->
        inode = port[p].left[_pid];
        e = port[p].orphaned[_pid];
        port[p].left[_pid] = 0;
        port[p].orphaned[_pid] = false;
        leave(p, d, e)
    :: else
    fi
}
#endif

/* The process loses all descriptors: it dies, or executes another program. */
inline close_all()
{
    for (c : 0 .. PORTS - 1) {
        port[c].alone = (port[c].alone == OF(_pid) -> NOBODY : port[c].alone);
        if
        :: port[c].lease == OF(_pid) ->
            port[c].lease = NOBODY;
#ifdef FORK
            /* It continues in those that inherited the lock. */
            for (a : 0 .. PROCESSES - 1) {
                port[c].lease =
                    (port[c].inherited[a] == OF(_pid) -> BY_DESCRIPTOR : port[c].lease)
            }
#endif
        :: else
        fi;
        if
        :: port[c].fd[_pid] != 0 -> close_own(c, true)
        :: else
        fi;
#ifdef FORK
        if
        :: port[c].inherited[_pid] != NOBODY -> close_inherited(c)
        :: else
        fi
#endif
    }
    rest()
}

/* A record or lease of the process, which is dead now. */
#define BURIED(v) (v == DELEGATED_TO(_pid) -> DELEGATED_TO_THE_DEAD : \
                   (v == PASSED_TO(_pid) -> PASSED_TO_THE_DEAD : v))

inline die()
{
    close_all();
    me.next = DEAD;
    for (c : 0 .. PORTS - 1) {
        if
        :: port[c].lease == DELEGATED_TO(_pid) || port[c].lease == PASSED_TO(_pid) ->
            port[c].lease = NOBODY
        :: port[c].lease == HELD_TWICE(_pid) -> /* others inherited the lock */
            port[c].lease = BY_DESCRIPTOR
        :: else
        fi;
        for (a : 1 .. INODES) {
            port[c].record[a] = BURIED(port[c].record[a])
        }
    }
    for (a : 0 .. PROCESSES - 1) {
        proc[a].seen = BURIED(proc[a].seen)
    }
    SAY("%c dies\n")
}

inline begin()
{
    me.next = IDLE;
    ON_BEGIN;
    SAY("%c begins\n")
}

#ifdef FORK
/* The process begins as a child of q, with duplicates of all descriptors of q. */
inline forked(q)
{
    for (c : 0 .. PORTS - 1) {
        port[c].inherited[_pid] = (port[c].fd[q] != 0 -> OF(q) : port[c].inherited[q]);
        port[c].copy[_pid] = port[c].lease == OF(q) || port[c].copy[q]
    }
    me.next = IDLE;
    printf("%c is forked from %c\n", NAME(_pid), NAME(q))
}

#define HAS(p, q) (port[p].fd[q] != 0 || port[p].inherited[q] != NOBODY)
#define HAS_TWO(p, q) (port[p].fd[q] != 0 && port[p].inherited[q] != NOBODY)
#if PORTS == 1
#define HAS_ANY(q) HAS(0, q)
#define CAN_FORK(q) (HAS(0, q) && !HAS_TWO(0, q))
#else
#define HAS_ANY(q) (HAS(0, q) || HAS(1, q))
#define CAN_FORK(q) (HAS_ANY(q) && !HAS_TWO(0, q) && !HAS_TWO(1, q))
#endif
#endif

/* --------------------------------------------------------------------- steps */

inline rest()
{
    me.next = IDLE;
    me.task = NOTHING;
    me.on = 0;
    me.is_long = false;
    me.seen = NONE
}

/* All is done except to release the lock. */
inline let_go()
{
    me.task = NOTHING;
    me.is_long = false;
    me.seen = NONE;
    me.next = UNLOCK
}

inline go_on(step)
{
    me.next = (step == READ && NEED_NOT_READ -> AFTER_JUDGE : step)
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
    BEGIN_ATTEMPT
}

/* Cleans up, or ends a lease that is not held by a lock. */
inline visit(p)
{
    task_begins(p, VISIT);
    open_step()
}

inline open_step()
{
    if
    :: here.exists && me.task == ACQUIRE ->
        mine = AT_PATH;
        me.next = AFTER_OPEN;
        SAY_AT("%c wants a lease: opens the file of port %d\n", me.on)
    :: here.exists && me.task != ACQUIRE ->
        mine = AT_PATH;
        me.next = AFTER_OPEN_TO_VISIT;
        SAY_AT("%c cleans up or releases: opens the file of port %d\n", me.on)
    :: !here.exists && me.task == ACQUIRE ->
        SAY_AT("%c wants a lease: there is no file of port %d\n", me.on);
        IF_MISSING
    :: else ->
        rest();
        SAY("%c finds no file there any more\n")
    fi
}

inline make_step()
{
    BEFORE_RENAME;
    if
    :: !here.exists ->
        here.exists = true;
        mine = AT_PATH;
        me.next = AFTER_OPEN;
        SAY_AT("%c creates the file of port %d\n", me.on)
    :: else ->
        me.next = OPEN;
        SAY("%c finds that another process has created it meanwhile\n")
    fi
}

inline lock_step()
{
    if
    :: here.lock[mine] == NOBODY ->
        here.lock[mine] = OF(_pid);
        go_on(AFTER_LOCK);
        SAY("%c locks it\n")
    :: else ->
        SAY("%c finds it locked, and gives up\n");
        attempt_fails();
        close_own(me.on, false);
        rest()
    fi
}

inline fstat_step()
{
    if
    :: IS_LINKED ->
        me.is_long = here.extended[mine];
        go_on(AFTER_FSTAT);
        if
        :: me.is_long -> SAY("%c sees that it is linked, and long\n")
        :: else -> SAY("%c sees that it is linked, and short\n")
        fi
    :: else -> replaced()
    fi
}

inline stat_step()
{
    if
    :: mine == AT_PATH ->
        go_on(AFTER_STAT);
        SAY("%c sees that it is the one at the path\n")
    :: else -> replaced()
    fi
}

/* The task opens the file again. */
inline replaced()
{
    SAY("%c sees that it is not at the path any more\n");
    I3(here.alone != OF(_pid));
    me.is_long = false;
    me.seen = NONE;
    me.next = UNLOCK
}

inline read_step()
{
    me.seen = (here.extended[mine] -> here.record[mine] : NONE);
    me.next = AFTER_READ;
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

/* An attempt goes on if the record does not keep the port. */
inline judge_step(evidence)
{
    if
    :: me.seen == NONE
    :: me.seen != NONE && evidence == DETERMINED ->
        SAY("%c determines whether that process is alive\n")
    :: else -> SAY("%c cannot determine whether that process is alive\n")
    fi;
    if
    :: KEEPS_THE_PORT(evidence) ->
        SAY("%c takes the port for leased\n");
        if
        :: LIMIT_OF_I3(evidence) -> here.alone = NOBODY
        :: else
        fi;
        attempt_fails();
        let_go()
    :: else ->
        me.next = AFTER_JUDGE;
        /* Remembered for the documented limit of I1 alone. */
        me.seen = (IS(PASSED_TO, me.seen) && evidence == UNDETERMINED -> me.seen : NONE)
    fi
}

inline judge_to_clean()
{
    BEFORE_UNLINK;
    me.seen = NONE;
    me.next = UNLINK
}

/* Release takes the process for gone, so that no lease is meant to end. */
inline judge_to_release()
{
    SAY("%c takes that process for gone\n");
    me.seen = NONE;
    me.next = ERASE
}

/* Release with force is meant to end the lease. */
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
    me.next = AFTER_PROBE
}

/* It was only a look, or other ports that were wanted too are not available. */
inline unprobe_only()
{
    SAY("%c closes that socket, and does not take the port\n");
    here.alone = NOBODY;
    AFTER_LOOKING;
    let_go()
}

inline record_step()
{
    unseen_lease_ends();
    write_record(me.on, NONE, false);
    if
    :: me.is_long ->
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
    write_record(me.on, DELEGATED_TO(x), DELEGATED_IS_LONG);
    printf("%c writes the record, and has leased port %d for %c\n",
           NAME(_pid), 4000 + me.on, NAME(x));
    lease_begins(DELEGATED_TO(x));
    let_go()
}

inline cut_step()
{
    here.extended[mine] = false;
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
    /* The user meant to end this lease, and no other. */
    if
    :: me.seen != NONE && here.lease == me.seen -> here.lease = NOBODY
    :: else
    fi;
    me.seen = NONE;
    if
    :: me.is_long -> me.next = CUT
    :: else -> let_go()
    fi
}

/* Where processes do not fork, no process notices that a file is closed that is not
 * locked. */
inline unlocked()
{
#ifdef FORK
    me.next = CLOSE
#else
    close_step()
#endif
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

inline release(p)
{
    me.on = p;
    here.lease = NOBODY;
    SAY_AT("%c unlocks the file, to release port %d\n", p);
    RELEASE;
    unlocked()
}

inline delegate(p, x)
{
    me.on = p;
    me.seen = DELEGATED_TO(x);
    printf("%c delegates port %d to %c\n", NAME(_pid), 4000 + p, NAME(x));
    DELEGATE
}

inline write_delegated()
{
    write_record(me.on, me.seen, DELEGATED_IS_LONG);
    here.lease = me.seen;
    SAY("%c writes the record\n");
    me.seen = NONE;
    me.next = UNLOCK
}

/* Process x is to inherit the descriptor: a child, or the process itself once it has
 * executed another program, which keeps pid, start time and descriptor. */
inline pass_to(p, x)
{
    printf("%c passes the lease of port %d to %c: writes the record\n",
           NAME(_pid), 4000 + p, NAME(x));
    write_record(p, PASSED_TO(x), PASSED_IS_LONG);
    port[p].lease = HELD_TWICE(x)
}

inline close_descriptor(p)
{
    SAY_AT("%c closes the descriptor that is the lease of port %d\n", p);
    close_own(p, true)
}

#ifdef FORK
inline into_descriptor(p)
{
    SAY_AT("%c turns its lease of port %d into a descriptor\n", p);
    port[p].lease = BY_DESCRIPTOR
}

inline end_copy(p)
{
    SAY_AT("%c drops its copy of the lease of port %d\n", p);
    END_OF_A_COPY(p);
    close_inherited(p);
    copy_ends(p)
}

inline execute()
{
    SAY("%c executes a program, which closes all descriptors\n");
    close_all()
}
#endif

/* ------------------------------------------------------------------ symmetry */

inline clear()
{
    a = 0; b = 0; c = 0; d = 0; e = 0; inode = 0; heir = 0; found = 0; first = 0; second = 0
}

#ifndef SYMMETRY
#define DONE clear()
#else
/* Which process is which makes no difference: they are sorted by their state, as far as
 * that is possible without comparing which processes they refer to. */
#define DONE sort(); clear()

/* Which of OF, LEFT_TO, DELEGATED_TO and so on; 0 and 5 or more name no process. */
#define KIND(v) (((v) + PROCESSES - 1) / PROCESSES)
#define NAMES_NONE(v) ((v) == 0 || KIND(v) > 4)

inline rank(order, q)
{
    order = ((proc[q].next * 5 + proc[q].task) * 2 + proc[q].on) * 7 + KIND(proc[q].seen);
    for (c : 0 .. PORTS - 1) {
        order = (order * 5 + port[c].fd[q]) * 3 +
                (port[c].record[AT_PATH] == DELEGATED_TO(q) -> 1 :
                 (port[c].record[AT_PATH] == PASSED_TO(q) -> 2 : 0));
#ifdef FORK
        order = order * 3 + (port[c].inherited[q] == NOBODY -> 0 :
                             (port[c].inherited[q] == LEFT_TO(q) -> 1 : 2));
        order = (order * 2 + port[c].copy[q]) * 5 + port[c].left[q]
#endif
    }
}

#define EXCHANGE(v, w) a = v; v = w; w = a
#define RENAME(v, q, r) \
    a = v; \
    v = (NAMES_NONE(a) -> a : \
         (PROCESS_IN(a) == (q) -> a + (r) - (q) : (PROCESS_IN(a) == (r) -> a + (q) - (r) : a)))

inline exchange(q, r)
{
    EXCHANGE(proc[q].next, proc[r].next);
    EXCHANGE(proc[q].task, proc[r].task);
    EXCHANGE(proc[q].on, proc[r].on);
    EXCHANGE(proc[q].is_long, proc[r].is_long);
    EXCHANGE(proc[q].seen, proc[r].seen);
    for (b : 0 .. PROCESSES - 1) {
        RENAME(proc[b].seen, q, r)
    }
    for (c : 0 .. PORTS - 1) {
        EXCHANGE(port[c].fd[q], port[c].fd[r]);
        for (b : 1 .. INODES) {
            RENAME(port[c].lock[b], q, r);
            RENAME(port[c].record[b], q, r)
        }
        RENAME(port[c].lease, q, r);
        RENAME(port[c].alone, q, r);
#ifdef FORK
        EXCHANGE(port[c].inherited[q], port[c].inherited[r]);
        EXCHANGE(port[c].left[q], port[c].left[r]);
        EXCHANGE(port[c].orphaned[q], port[c].orphaned[r]);
        EXCHANGE(port[c].copy[q], port[c].copy[r]);
        for (b : 0 .. PROCESSES - 1) {
            RENAME(port[c].inherited[b], q, r)
        }
#endif
    }
}

/* Three processes are sorted by exchanging 0 and 1, 1 and 2, and 0 and 1 again. */
inline sort()
{
    for (d : 0 .. 2 * PROCESSES - 4) {
        e = d % 2;
        rank(first, e);
        rank(second, e + 1);
        if
        :: first > second -> exchange(e, e + 1)
        :: else
        fi
    }
}
#endif

/* ----------------------------------------------------------------- processes */

#define CAN_BEGIN(p) (me.next == IDLE && port[p].fd[_pid] == 0)
#define HAS_LEASE(p) (me.next == IDLE && port[p].lease == OF(_pid) && port[p].fd[_pid] != 0)
#define HAS_DESCRIPTOR(p) \
    (me.next == IDLE && port[p].fd[_pid] != 0 && \
     (port[p].lease == BY_DESCRIPTOR || IS(HELD_TWICE, port[p].lease)))
#ifdef NO_PASSING
#define CAN_PASS(p) false
#else
#define CAN_PASS(p) HAS_LEASE(p)
#endif
#define LIVES(x) (proc[x].next != DEAD)
/* On whatever evidence. */
#define MAY(decision) (decision(DETERMINED) || decision(UNDETERMINED))

/* `run` checks that each step is taken in one of its searches. */
#ifdef COVERAGE
#define TAKEN(name) \
    c_code { static int taken; if (!taken) { taken = 1; printf("taken: " #name "\n"); } };
#else
#define TAKEN(name)
#endif

#define STEP(name, guard, action) :: d_step { guard -> TAKEN(name) action; DONE }

active [PROCESSES] proctype process()
{
    do
#define TASKS(p) \
    STEP(acquire, CAN_BEGIN(p), acquire(p)) \
    STEP(visit, CAN_BEGIN(p) && port[p].exists, visit(p)) \
    STEP(release, HAS_LEASE(p), release(p)) \
    STEP(pass_to, CAN_PASS(p) && LIVES(0), pass_to(p, 0)) \
    STEP(pass_to, CAN_PASS(p) && LIVES(1), pass_to(p, 1)) \
    STEP(close_descriptor, HAS_DESCRIPTOR(p), close_descriptor(p)) \
    STEP(delegate, HAS_LEASE(p) && LIVES(0), delegate(p, 0)) \
    STEP(delegate, HAS_LEASE(p) && LIVES(1), delegate(p, 1))
    TASKS(0)
#if PORTS > 1
    TASKS(1)
#endif
#if PROCESSES > 2
    STEP(delegate, HAS_LEASE(0) && LIVES(2), delegate(0, 2))
    STEP(pass_to, CAN_PASS(0) && LIVES(2), pass_to(0, 2))
#if PORTS > 1
    STEP(delegate, HAS_LEASE(1) && LIVES(2), delegate(1, 2))
    STEP(pass_to, CAN_PASS(1) && LIVES(2), pass_to(1, 2))
#endif
#endif

    STEP(open, me.next == OPEN, open_step())
    STEP(make, me.next == MAKE, make_step())
    STEP(lock, me.next == LOCK, lock_step())
    STEP(fstat, me.next == FSTAT, fstat_step())
    STEP(stat, me.next == STAT, stat_step())
    STEP(read, me.next == READ, read_step())
#define JUDGES(what) (me.next == JUDGE && me.task == what)
    STEP(judge, JUDGES(ACQUIRE), judge_step(DETERMINED))
    STEP(judge_unseen, JUDGES(ACQUIRE) && me.seen != NONE, judge_step(UNDETERMINED))
    STEP(judge_to_clean, JUDGES(VISIT) && MAY(MAY_REMOVE), judge_to_clean())
    STEP(judge_to_release, JUDGES(VISIT) && me.seen != NONE && MAY(MAY_RELEASE), judge_to_release())
    STEP(judge_to_force, JUDGES(VISIT) && me.seen != NONE && MAY_FORCE, judge_to_force())
    STEP(let_go, JUDGES(VISIT), let_go())
    STEP(probe, me.next == PROBE, probe_step())
    STEP(probe_fails, me.next == PROBE, probe_fails())
    STEP(unprobe, me.next == UNPROBE, unprobe_step())
    STEP(unprobe_only, me.next == UNPROBE, unprobe_only())
    STEP(record, me.next == RECORD, record_step())
    STEP(record_for, me.next == RECORD && LIVES(0), record_for(0))
    STEP(record_for, me.next == RECORD && LIVES(1), record_for(1))
#if PROCESSES > 2
    STEP(record_for, me.next == RECORD && LIVES(2), record_for(2))
#endif
    STEP(cut, me.next == CUT, cut_step())
    STEP(unlink, me.next == UNLINK, unlink_step())
    STEP(erase, me.next == ERASE, erase_step())
    STEP(unlock, me.next == UNLOCK, unlock_step())
    STEP(close, me.next == CLOSE, close_step())
    OTHER_STEPS

    STEP(die, me.next != DEAD, die())
    STEP(begin, me.next == DEAD, begin())

#ifdef FORK
#define FORKED(q) STEP(forked, me.next == DEAD && q != _pid && CAN_FORK(q), forked(q))
    FORKED(0)
    FORKED(1)
#if PROCESSES > 2
    FORKED(2)
#endif
    STEP(execute, me.next != DEAD && HAS_ANY(_pid), execute())

#define FORK_TASKS(p) \
    STEP(end_copy, port[p].copy[_pid], end_copy(p)) \
    STEP(into_descriptor, HAS_LEASE(p), into_descriptor(p))
    FORK_TASKS(0)
#if PORTS > 1
    FORK_TASKS(1)
#endif
#endif
    od
}
