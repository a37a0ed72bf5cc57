/*
 * How the protocol could be different. Each part replaces one of the decisions in
 * lock.pml, and is chosen by -D with its name. `run` says which promise each breaks.
 */

/* ------------------------------------------------- variants that do no harm */

/* For file systems on which the link count is not reliable. */
#ifdef PATH_COMPARED
#undef IS_LINKED
#define IS_LINKED true
#undef AFTER_FSTAT
#define AFTER_FSTAT STAT
#endif

#ifdef MADE_IN_PLACE
#undef IF_MISSING
#define IF_MISSING make_step()
#endif

/* ------------------------------------------------------ the order of the steps */

#ifdef NO_PATH_CHECK
#undef IS_LINKED
#define IS_LINKED true
#endif

#ifdef PATH_CHECK_BEFORE_LOCK
#undef AFTER_OPEN
#define AFTER_OPEN FSTAT
#undef AFTER_FSTAT
#define AFTER_FSTAT LOCK
#undef AFTER_LOCK
#define AFTER_LOCK READ
#undef NEED_NOT_READ
#define NEED_NOT_READ false
#endif

#ifdef LENGTH_BEFORE_LOCK
#undef AFTER_OPEN
#define AFTER_OPEN FSTAT
#undef AFTER_FSTAT
#define AFTER_FSTAT LOCK
#undef AFTER_LOCK
#define AFTER_LOCK STAT
#endif

#ifdef RECORD_BEFORE_LOCK
#undef AFTER_OPEN
#define AFTER_OPEN READ
#undef AFTER_READ
#define AFTER_READ LOCK
#undef AFTER_FSTAT
#define AFTER_FSTAT JUDGE
#undef NEED_NOT_READ
#define NEED_NOT_READ false
#endif

#ifdef PROBE_BEFORE_LOCK
#undef BEGIN_ATTEMPT
#define BEGIN_ATTEMPT me.next = PROBE; SAY_AT("%c wants port %d\n", me.on)
#undef AFTER_PROBE
#define AFTER_PROBE OPEN
#undef AFTER_JUDGE
#define AFTER_JUDGE RECORD
#endif

#ifdef RENAME_REPLACES
#undef BEFORE_RENAME
#define BEFORE_RENAME if :: here.exists -> detach(me.on) :: else fi
#endif

/* -------------------------------------------------- which record keeps the port */

#ifdef RECORD_IGNORED
#undef KEEPS_THE_PORT
#define KEEPS_THE_PORT(evidence) false
#endif

#ifdef PASSED_RECORD_IGNORED
#undef KEEPS_THE_PORT
#define KEEPS_THE_PORT(evidence) (IS_DELEGATED(me.seen) && !GONE(evidence))
#endif

/* Another boot id, a partial view of the processes, a /proc of another pid namespace, or
 * a shifted start time taken for proof. */
#ifdef UNDETERMINED_COUNTS_AS_GONE
#undef KEEPS_THE_PORT
#define KEEPS_THE_PORT(evidence) ALIVE(evidence)
#endif

#ifdef PASSED_COUNTS_WHEN_UNDETERMINED
#undef KEEPS_THE_PORT
#define KEEPS_THE_PORT(evidence) (me.seen != NONE && !GONE(evidence))
#endif

#ifdef DEAD_KEEP_PORTS
#undef KEEPS_THE_PORT
#define KEEPS_THE_PORT(evidence) (IS_DELEGATED(me.seen) || ALIVE(evidence))
#endif

/* A new process that is given the pid of a dead one is taken for it. */
#ifdef START_NOT_COMPARED
#undef ON_BEGIN
#define ON_BEGIN recycle_pid()
inline recycle_pid()
{
    for (c : 0 .. PORTS - 1) {
        for (a : 1 .. INODES) {
            port[c].record[a] =
                (port[c].record[a] == DELEGATED_TO_THE_DEAD -> DELEGATED_TO(_pid) :
                 (port[c].record[a] == PASSED_TO_THE_DEAD -> PASSED_TO(_pid) :
                  port[c].record[a]))
        }
    }
}
#endif

/* -------------------------------------------------------- writing the record */

#ifdef DELEGATE_WRITES_SHORT
#undef DELEGATED_IS_LONG
#define DELEGATED_IS_LONG false
#endif

#ifdef PASSED_IS_SHORT
#undef PASSED_IS_LONG
#define PASSED_IS_LONG false
#endif

#ifdef DELEGATE_UNLOCKS_FIRST
#undef DELEGATE
#define DELEGATE here.lock[mine] = NOBODY; me.next = LATE_RECORD; SAY("%c unlocks the file\n")
#undef OTHER_STEPS
#define OTHER_STEPS STEP(late_record, me.next == LATE_RECORD, late_record_step())
inline late_record_step()
{
    write_record(me.on, me.seen, DELEGATED_IS_LONG);
    here.lease = (IS_OF_THE_DEAD(me.seen) -> NOBODY : me.seen);
    me.seen = NONE;
    SAY("%c writes the record\n");
    unlocked()
}
#endif

#ifdef LOOK_WRITES
#undef AFTER_LOOKING
#define AFTER_LOOKING \
    SAY("%c writes its own record\n"); \
    write_record(me.on, NONE, false); \
    here.extended[mine] = false
#endif

/* ------------------------------------------------------------ clean and release */

#ifdef CLEAN_WITHOUT_LOCK
#undef AFTER_OPEN_TO_VISIT
#define AFTER_OPEN_TO_VISIT READ
#undef MAY_FORCE
#define MAY_FORCE false
#undef MAY_RELEASE
#define MAY_RELEASE(evidence) false
#endif

#ifdef CLEAN_UNLOCKS_FIRST
#undef BEFORE_UNLINK
#define BEFORE_UNLINK here.lock[mine] = NOBODY; SAY("%c unlocks it\n")
#endif

#ifdef CLEAN_IGNORES_RECORD
#undef MAY_REMOVE
#define MAY_REMOVE(evidence) true
#endif

#ifdef CLEAN_REMOVES_UNDETERMINED
#undef MAY_REMOVE
#define MAY_REMOVE(evidence) (!ALIVE(evidence))
#endif

#ifdef RELEASE_WITHOUT_PROOF
#undef MAY_RELEASE
#define MAY_RELEASE(evidence) (!ALIVE(evidence))
#endif

#ifdef FORCE_WITHOUT_LOCK
#undef AFTER_OPEN_TO_VISIT
#define AFTER_OPEN_TO_VISIT READ
#undef MAY_REMOVE
#define MAY_REMOVE(evidence) false
#undef MAY_RELEASE
#define MAY_RELEASE(evidence) false
#endif

/* ------------------------------------------------------------------------ forks */

#ifdef RELEASE_ONLY_CLOSES
#undef RELEASE
#define RELEASE skip
#endif

#ifdef COPY_UNLOCKS
#undef END_OF_A_COPY
#define END_OF_A_COPY(p) \
    for (a : 1 .. INODES) { \
        port[p].lock[a] = \
            (port[p].lock[a] == port[p].inherited[_pid] -> NOBODY : port[p].lock[a]) \
    }
#endif

/* A copy may then write to the file after the lease has ended, so each one matters. */
#ifdef COPY_DELEGATES
#undef MATTERS
#define MATTERS(p, description) true
#undef OTHER_STEPS
#define OTHER_STEPS \
    STEP(delegate_copy, port[0].copy[_pid] && LIVES(0), delegate_copy(0, 0)) \
    STEP(delegate_copy, port[0].copy[_pid] && LIVES(1), delegate_copy(0, 1))
inline delegate_copy(p, x)
{
    printf("%c delegates its copy of the lease of port %d to %c: writes the record\n",
           NAME(_pid), 4000 + p, NAME(x));
    d = port[p].inherited[_pid];
    inode = (d <= PROCESSES -> port[p].fd[d - OF(0)] : port[p].left[d - LEFT_TO(0)]);
    port[p].record[inode] = DELEGATED_TO(x);
    port[p].extended[inode] = true;
    close_inherited(p);
    copy_ends(p)
}
#endif

/* ------------------------------------------------------------ without a limit */

#ifdef PROMISED_TO_PROCESSES_UNSEEN
#undef LIMIT_OF_I1
#define LIMIT_OF_I1 false
#endif

#ifdef PROMISED_TO_ATTEMPTS_UNSEEING
#undef LIMIT_OF_I3
#define LIMIT_OF_I3(evidence) false
#endif

/* `check` creates no lock file, so without one it binds the port without a lock. */
#ifdef PROMISED_WITHOUT_LOCK_FILES
#undef OTHER_STEPS
#define OTHER_STEPS \
    STEP(check, CAN_BEGIN(0) && !port[0].exists, check()) \
    STEP(peek, me.next == PEEK, peek_step())
inline check()
{
    me.next = PEEK;
    SAY("%c checks a port: there is no file\n")
}
inline peek_step()
{
    SAY("%c binds the port\n");
    probe_begins();
    rest()
}
#endif
