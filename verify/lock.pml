/*
 * The lock protocol of src/, as a model for spin. Each `::` of the process at the
 * end is one step, with no more than one system call that others can notice.
 * Between any two steps every other process may do its own, and at any time one
 * may be killed or forked. README.md says which step is which function, and what
 * is left out.
 *
 * Given with -D:
 *   PROCESSES  how many there are, 2 or 3
 *   PORTS      and ports, 1 or 2
 *   FORK       processes also fork, execute programs and pass descriptors on
 *   SYMMETRY   of states that differ only in which process is which, one is looked
 *              at; the names in a narrative then mean nothing
 *   PROMISE    the number of the only promise to be checked; all without it
 * and what is to be changed, as `run` lists it.
 */

#ifndef PROCESSES
#define PROCESSES 3 /* at a time: whoever dies makes room for another */
#endif
#ifndef PORTS
#define PORTS 1
#endif
#ifndef PROMISE
#define PROMISE 0
#endif

/* --------------------------------------------------------------------- state */

/* Whose a lock is: nobody's; an open file description's, named by the process
 * that opened it, which has but one for each port; or that of one which that
 * process has closed while others inherited it, named by one of those. */
#define NOBODY 0
#define OF(q) ((q) + 1)
#define LEFT_TO(q) (PROCESSES + 1 + (q))
/* Whose a lease is: nobody's, a process's, that of a process it was delegated
 * to, or that of whoever has the descriptor. */
#define DELEGATED_TO(q) (PROCESSES + 1 + (q))
#define BY_DESCRIPTOR (2 * PROCESSES + 1)
/* What an owner record says: OF(q) if the port is delegated to q, which lives.
 * All others are the same: "held" only informs, and the dead keep nothing. */
#define NONE 0
#ifdef DEAD_KEEP_PORTS
#define OF_THE_DEAD (PROCESSES + 1)
#else
#define OF_THE_DEAD NONE
#endif

/* The inode of the file at the path, if there is one. The others have been
 * unlinked, and are there as long as a process has opened them: at most one each. */
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
    /* What users were promised. No process ever looks at these. */
    byte lease;
    byte alone;                /* whose attempt nobody has come near */
}

/* What a process does next, */
mtype = { DEAD, IDLE, OPEN, MAKE, LOCK, FSTAT, STAT, READ, JUDGE, PROBE, UNPROBE, RECORD,
          CUT, UNLINK, ERASE, LATE_RECORD, UNLOCK, CLOSE };
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

/* The inlines' own, used within one step and cleared after it. */
byte a, b, c, d, e, inode, heir, found;
int first, second;

/* For the narrative. */
#define NAME(q) ('A' + (q))
#define SAY(text) printf(text, NAME(_pid))
#define SAY_AT(text, p) printf(text, NAME(_pid), 4000 + p)

/* ------------------------------------------------------------------ promises */

/* By the names that are reported. As long as they hold, they add no states. */
bit I1_exclusive = 1;
bit I2_not_probed_while_leased = 1;
bit I3_free_after_death = 1;
bit I4_free_after_release = 1;
bit I5_copy_ends_nothing = 1;
bit there_are_enough_inodes = 1;

#if PROMISE == 0 || PROMISE == 1
#define I1(holds) I1_exclusive = (holds); assert(I1_exclusive)
#else
#define I1(holds) skip
#endif
#if PROMISE == 0 || PROMISE == 2
#define I2(holds) I2_not_probed_while_leased = (holds); assert(I2_not_probed_while_leased)
#else
#define I2(holds) skip
#endif
#if PROMISE == 0 || PROMISE == 3
#define I3(holds) I3_free_after_death = (holds); assert(I3_free_after_death)
#else
#define I3(holds) skip
#endif
#if PROMISE == 0 || PROMISE == 4
#define I4(holds) I4_free_after_release = (holds); assert(I4_free_after_release)
#else
#define I4(holds) skip
#endif
#if PROMISE == 0 || PROMISE == 5
#define I5(holds) I5_copy_ends_nothing = (holds); assert(I5_copy_ends_nothing)
#else
#define I5(holds) skip
#endif

/* I1: when a lease is given, nobody else has one.
 * I2: nor has anybody else the port still bound. */
inline lease_begins(whose)
{
    I1(here.lease == NOBODY);
    for (a : 0 .. PROCESSES - 1) {
        I2(a == _pid || proc[a].next != UNPROBE || proc[a].on != me.on)
    }
    here.lease = whose;
    here.alone = NOBODY
}

/* I2: nobody binds a port that is leased. */
inline probe_begins()
{
    I2(here.lease == NOBODY)
}

/* I3, I4: an attempt that begins while nobody has the port, or is at it, succeeds
 * unless somebody else comes. Here it begins, or somebody else comes. */
inline task_begins(p, what)
{
    me.task = what;
    me.on = p;
    found = what == ACQUIRE && here.lease == NOBODY;
    for (a : 0 .. PROCESSES - 1) {
        found = found && (a == _pid || proc[a].on != p ||
                          proc[a].next == IDLE || proc[a].next == DEAD);
#ifdef FORK
        /* Of a process that was killed on its way, a child may have the lock. As
         * with a lease, it has to end too. */
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
        I4(!found); /* it was released, and somebody still has the lock */
        I3(found);
        here.alone = NOBODY
    :: else
    fi
}

/* I5: what a copy in a forked child has just done has ended nobody's lease. */
inline copy_ends(p)
{
    for (a : 0 .. PROCESSES - 1) {
        I5(port[p].lease != OF(a) || port[p].lock[port[p].fd[a]] == OF(a))
    }
    I5(port[p].lease != BY_DESCRIPTOR || port[p].lock[AT_PATH] != NOBODY)
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

/* An unlinked file that no process has opened but in those that inherited it:
 * nobody will ever come to it again. */
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

#ifdef FORK
/* Whether it matters that somebody still has a description that nobody else
 * will lock: if it has the lock, or if copies may write to the file. */
#ifdef COPY_DELEGATES
#define MATTERS(p, description) true
#else
#define MATTERS(p, description) (port[p].lock[inode] == description)
#endif
#endif

/* The process that a description of `inode` is named by has closed it. From now
 * on it is named by another that inherited it. With the last its lock ends. */
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
        :: else
        fi
    :: else
    fi;
    reclaim(p, inode)
}

/* close(2) of what the process has opened. */
inline close_own(p, as_orphan)
{
    inode = port[p].fd[_pid];
    port[p].fd[_pid] = 0;
    leave(p, OF(_pid), as_orphan)
}

#ifdef FORK
/* close(2) of what it has inherited. */
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

/* The process loses everything: it dies, or executes another program. */
inline close_all()
{
    for (c : 0 .. PORTS - 1) {
        port[c].alone = (port[c].alone == OF(_pid) -> NOBODY : port[c].alone);
        if
        :: port[c].lease == OF(_pid) ->
            port[c].lease = NOBODY;
#ifdef FORK
            /* It goes on in those that inherited the lock. */
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

inline die()
{
    close_all();
    me.next = DEAD;
    for (c : 0 .. PORTS - 1) {
        port[c].lease = (port[c].lease == DELEGATED_TO(_pid) -> NOBODY : port[c].lease);
        for (a : 1 .. INODES) {
            port[c].record[a] =
                (port[c].record[a] == OF(_pid) -> OF_THE_DEAD : port[c].record[a])
        }
    }
    for (a : 0 .. PROCESSES - 1) {
        proc[a].seen = (proc[a].seen == OF(_pid) -> OF_THE_DEAD : proc[a].seen)
    }
    SAY("%c dies\n")
}

#ifdef FORK
/* The process begins as a child of q, with a duplicate of all that q has open. */
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

/* --------------------------------------------------------------------- order */

#ifndef AFTER_OPEN
#define AFTER_OPEN LOCK
#endif
#ifndef AFTER_LOCK
#define AFTER_LOCK FSTAT
#endif
#ifndef AFTER_FSTAT
#define AFTER_FSTAT READ
#endif
#ifndef AFTER_STAT
#define AFTER_STAT READ
#endif
#ifndef AFTER_READ
#define AFTER_READ JUDGE
#endif
#ifndef PROBE_BEFORE_LOCK
#define AFTER_JUDGE PROBE
#define AFTER_PROBE RECORD
#else
#define AFTER_JUDGE RECORD
#define AFTER_PROBE OPEN
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

/* All is done but for the lock. */
inline let_go()
{
    me.task = NOTHING;
    me.is_long = false;
    me.seen = NONE;
    me.next = UNLOCK
}

/* Whoever wants a lease does not read the record of a file that is too short. */
inline go_on(step)
{
#ifdef ALWAYS_READ
    me.next = step
#else
    me.next = (step == READ && me.task == ACQUIRE && !me.is_long -> AFTER_JUDGE : step)
#endif
}

inline acquire(p)
{
    task_begins(p, ACQUIRE);
#ifdef PROBE_BEFORE_LOCK
    me.next = PROBE;
    SAY_AT("%c wants port %d\n", p)
#else
    open_step()
#endif
}

inline open_step()
{
    if
    :: here.exists ->
        mine = AT_PATH;
        me.next = AFTER_OPEN;
#if defined CLEAN_WITHOUT_LOCK || defined FORCE_WITHOUT_LOCK
        me.next = (me.task == VISIT -> READ : me.next);
#endif
        if
        :: me.task == ACQUIRE -> SAY_AT("%c wants a lease: opens the file of port %d\n", me.on)
        :: else -> SAY_AT("%c cleans up or ends a delegation: opens the file of port %d\n", me.on)
        fi
    :: else ->
        if
        :: me.task == ACQUIRE ->
            me.next = MAKE;
            SAY_AT("%c wants a lease: there is no file of port %d\n", me.on)
        :: else ->
            rest();
            SAY("%c finds no file there any more\n")
        fi
    fi
#ifdef MADE_IN_PLACE
    ;
    if
    :: me.next == MAKE -> make_step()
    :: else
    fi
#endif
}

inline make_step()
{
#ifdef RENAME_REPLACES
    if
    :: here.exists -> detach(me.on)
    :: else
    fi;
#endif
    if
    :: !here.exists ->
        here.exists = true;
        mine = AT_PATH;
        me.next = AFTER_OPEN;
        SAY_AT("%c makes the file of port %d\n", me.on)
    :: else ->
        me.next = OPEN;
        SAY("%c finds that another has made it meanwhile\n")
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
#ifdef LINKS_NOT_COUNTED
    found = true;
#else
    found = mine == AT_PATH;
#endif
    if
    :: found ->
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

/* To be opened again, if the task goes on. */
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
#ifdef RECORD_IGNORED
    me.seen = (me.task == ACQUIRE -> NONE : me.seen);
#endif
#ifdef CLEAN_IGNORES_RECORD
    me.seen = (me.task == VISIT -> NONE : me.seen);
#endif
    me.next = AFTER_READ;
    if
    :: me.seen == NONE -> SAY("%c reads the record: not delegated\n")
    :: me.seen > PROCESSES -> SAY("%c reads the record: delegated to a process that is dead\n")
    :: else -> printf("%c reads the record: delegated to %c\n", NAME(_pid), NAME(me.seen - 1))
    fi
}

/* Whoever wants a lease goes on if the process in the record is dead. */
inline judge_step()
{
    if
    :: me.seen == NONE -> me.next = AFTER_JUDGE
    :: else ->
        SAY("%c leaves it at that\n");
        attempt_fails();
        let_go()
    fi
}

/* Whoever wants none either wants to clean up, */
inline judge_to_clean()
{
#ifdef CLEAN_UNLOCKS_FIRST
    here.lock[mine] = NOBODY;
    SAY("%c unlocks it\n");
#endif
    me.next = UNLINK
}

/* or to end the delegated lease. */
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

/* A program that does not know of leases has it. */
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

/* It has only looked, or others that are wanted with it are missing. */
inline unprobe_only()
{
    SAY("%c closes that socket, and does not take the port\n");
    here.alone = NOBODY;
    let_go()
}

inline record_step()
{
    here.record[mine] = NONE;
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

/* The lease is that of process x from the beginning. */
inline record_for(x)
{
    here.record[mine] = OF(x);
    here.extended[mine] = true;
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
        SAY_AT("%c cuts the file, and has leased port %d\n", me.on);
        lease_begins(OF(_pid));
        rest()
    :: else ->
        SAY("%c cuts the file\n");
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
    SAY("%c erases the record, which ends the delegated lease\n");
    here.record[mine] = NONE;
    /* Only the lease that it has seen. */
    if
    :: me.seen != NONE && here.lease == DELEGATED_TO(me.seen - OF(0)) -> here.lease = NOBODY
    :: else
    fi;
    if
    :: me.is_long ->
        me.seen = NONE;
        me.next = CUT
    :: else -> let_go()
    fi
}

/* Where nobody forks, nobody notices when a file is closed that is not locked. */
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
#ifdef RELEASE_ONLY_CLOSES
    SAY_AT("%c releases port %d\n", p);
#else
    here.lock[mine] = NOBODY;
    SAY_AT("%c unlocks the file, to release port %d\n", p);
#endif
    unlocked()
}

inline delegate(p, x)
{
    me.on = p;
#ifdef DELEGATE_UNLOCKS_FIRST
    here.lock[mine] = NOBODY;
    me.seen = OF(x);
    me.next = LATE_RECORD;
    printf("%c delegates port %d to %c: unlocks the file\n", NAME(_pid), 4000 + p, NAME(x))
#else
    here.record[mine] = OF(x);
#ifndef DELEGATE_WRITES_SHORT
    here.extended[mine] = true;
#endif
    here.lease = DELEGATED_TO(x);
    me.next = UNLOCK;
    printf("%c delegates port %d to %c: writes the record\n", NAME(_pid), 4000 + p, NAME(x))
#endif
}

inline late_record_step()
{
    here.record[mine] = me.seen;
    here.extended[mine] = true;
    here.lease = (me.seen == NONE -> NOBODY : DELEGATED_TO(me.seen - OF(0)));
    SAY("%c writes the record\n");
    unlocked()
}

#ifdef FORK
inline end_copy(p)
{
#ifndef COPY_UNLOCKS
    SAY_AT("%c drops its copy of the lease of port %d: closes the file\n", p);
#else
    SAY_AT("%c drops its copy of the lease of port %d: unlocks and closes the file\n", p);
    for (a : 1 .. INODES) {
        port[p].lock[a] =
            (port[p].lock[a] == port[p].inherited[_pid] -> NOBODY : port[p].lock[a])
    }
#endif
    close_inherited(p);
    copy_ends(p)
}

#ifdef COPY_DELEGATES
inline delegate_copy(p, x)
{
    printf("%c delegates its copy of the lease of port %d to %c: writes the record\n",
           NAME(_pid), 4000 + p, NAME(x));
    d = port[p].inherited[_pid];
    inode = (d <= PROCESSES -> port[p].fd[d - OF(0)] : port[p].left[d - LEFT_TO(0)]);
    port[p].record[inode] = OF(x);
    port[p].extended[inode] = true;
    close_inherited(p);
    copy_ends(p)
}
#endif

inline into_descriptor(p)
{
    SAY_AT("%c makes a descriptor of its lease of port %d\n", p);
    port[p].lease = BY_DESCRIPTOR
}

inline close_descriptor(p)
{
    SAY_AT("%c closes the descriptor that is the lease of port %d\n", p);
    close_own(p, true)
}

inline execute()
{
    SAY("%c executes a program, which closes all\n");
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
/* Which process is which makes no difference: they are sorted by what they are
 * at, as well as it can be told without comparing whom they refer to. */
#define DONE sort(); clear()

inline rank(order, q)
{
    order = ((proc[q].next * 5 + proc[q].task) * 2 + proc[q].on) * 4 + proc[q].seen;
    for (c : 0 .. PORTS - 1) {
        order = (order * 5 + port[c].fd[q]) * 2 + (port[c].record[AT_PATH] == OF(q));
#ifdef FORK
        order = order * 3 + (port[c].inherited[q] == NOBODY -> 0 :
                             (port[c].inherited[q] == LEFT_TO(q) -> 1 : 2));
        order = (order * 2 + port[c].copy[q]) * 5 + port[c].left[q]
#endif
    }
}

#define EXCHANGE(v, w) a = v; v = w; w = a
/* OF, LEFT_TO and DELEGATED_TO. */
#define RENAME(v, q, r) v = (v == OF(q) -> OF(r) : (v == OF(r) -> OF(q) : \
    (v == LEFT_TO(q) -> LEFT_TO(r) : (v == LEFT_TO(r) -> LEFT_TO(q) : v))))

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

/* Two processes are neighbours, three are sorted by exchanging 0 and 1, 1 and 2,
 * and 0 and 1 again. */
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
    (me.next == IDLE && port[p].lease == BY_DESCRIPTOR && port[p].fd[_pid] != 0)
#define LIVES(x) (proc[x].next != DEAD)

active [PROCESSES] proctype process()
{
    do
#define TASKS(p) \
    :: d_step { CAN_BEGIN(p) -> acquire(p); DONE } \
    :: d_step { CAN_BEGIN(p) && port[p].exists -> task_begins(p, VISIT); open_step(); DONE } \
    :: d_step { HAS_LEASE(p) -> release(p); DONE } \
    :: d_step { HAS_LEASE(p) && LIVES(0) -> delegate(p, 0); DONE } \
    :: d_step { HAS_LEASE(p) && LIVES(1) -> delegate(p, 1); DONE }
    TASKS(0)
#if PORTS > 1
    TASKS(1)
#endif
#if PROCESSES > 2
    :: d_step { HAS_LEASE(0) && LIVES(2) -> delegate(0, 2); DONE }
#if PORTS > 1
    :: d_step { HAS_LEASE(1) && LIVES(2) -> delegate(1, 2); DONE }
#endif
#endif

    :: d_step { me.next == OPEN -> open_step(); DONE }
    :: d_step { me.next == MAKE -> make_step(); DONE }
    :: d_step { me.next == LOCK -> lock_step(); DONE }
    :: d_step { me.next == FSTAT -> fstat_step(); DONE }
    :: d_step { me.next == STAT -> stat_step(); DONE }
    :: d_step { me.next == READ -> read_step(); DONE }
    :: d_step { me.next == JUDGE && me.task == ACQUIRE -> judge_step(); DONE }
#ifndef FORCE_WITHOUT_LOCK
    :: d_step { me.next == JUDGE && me.task == VISIT && me.seen == NONE -> judge_to_clean(); DONE }
#endif
#ifndef CLEAN_WITHOUT_LOCK
    :: d_step { me.next == JUDGE && me.task == VISIT && me.seen != NONE -> judge_to_force(); DONE }
#endif
    :: d_step { me.next == JUDGE && me.task == VISIT -> let_go(); DONE }
    :: d_step { me.next == PROBE -> probe_step(); DONE }
    :: d_step { me.next == PROBE -> probe_fails(); DONE }
    :: d_step { me.next == UNPROBE -> unprobe_step(); DONE }
    :: d_step { me.next == UNPROBE -> unprobe_only(); DONE }
    :: d_step { me.next == RECORD -> record_step(); DONE }
    :: d_step { me.next == RECORD && LIVES(0) -> record_for(0); DONE }
    :: d_step { me.next == RECORD && LIVES(1) -> record_for(1); DONE }
#if PROCESSES > 2
    :: d_step { me.next == RECORD && LIVES(2) -> record_for(2); DONE }
#endif
    :: d_step { me.next == CUT -> cut_step(); DONE }
    :: d_step { me.next == UNLINK -> unlink_step(); DONE }
    :: d_step { me.next == ERASE -> erase_step(); DONE }
    :: d_step { me.next == UNLOCK -> unlock_step(); DONE }
    :: d_step { me.next == CLOSE -> close_step(); DONE }
#ifdef DELEGATE_UNLOCKS_FIRST
    :: d_step { me.next == LATE_RECORD -> late_record_step(); DONE }
#endif

    :: d_step { me.next != DEAD -> die(); DONE }
    :: d_step { me.next == DEAD -> me.next = IDLE; SAY("%c begins\n"); DONE }

#ifdef FORK
#define FORKED(q) \
    :: d_step { me.next == DEAD && q != _pid && CAN_FORK(q) -> forked(q); DONE }
    FORKED(0)
    FORKED(1)
#if PROCESSES > 2
    FORKED(2)
#endif
    :: d_step { me.next != DEAD && HAS_ANY(_pid) -> execute(); DONE }

#define FORK_TASKS(p) \
    :: d_step { port[p].copy[_pid] -> end_copy(p); DONE } \
    :: d_step { HAS_LEASE(p) -> into_descriptor(p); DONE } \
    :: d_step { HAS_DESCRIPTOR(p) -> close_descriptor(p); DONE }
    FORK_TASKS(0)
#if PORTS > 1
    FORK_TASKS(1)
#endif
#ifdef COPY_DELEGATES
    :: d_step { port[0].copy[_pid] && LIVES(0) -> delegate_copy(0, 0); DONE }
    :: d_step { port[0].copy[_pid] && LIVES(1) -> delegate_copy(0, 1); DONE }
#if PROCESSES > 2
    :: d_step { port[0].copy[_pid] && LIVES(2) -> delegate_copy(0, 2); DONE }
#endif
#endif
#endif
    od
}
