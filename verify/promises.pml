/*
 * The promises of docs/guarantees.md as assertions, and their documented limits. README.md
 * explains both.
 */

/* I1, I2: the lease was passed to a process, and its lock has been closed. So it is the
 * record alone, and this attempt could not determine whether that process is alive.
 * (In every other case `judge_step` clears `seen`.) */
#define LIMIT_OF_I1 (me.seen != NONE && here.lease == me.seen)
/* I3: this attempt could not determine whether the process that the port is delegated to
 * is alive. */
#define LIMIT_OF_I3(evidence) (IS_DELEGATED(me.seen) && evidence == UNDETERMINED)

/* The names that spin reports. While the promises hold, these add no states. */
bit I1_exclusive = 1;
bit I2_not_probed_while_leased = 1;
bit I3_free_after_death = 1;
bit I4_free_after_release = 1;
bit I5_copy_ends_nothing = 1;
bit I9_reservation_is_kept = 1;
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
#define I9(holds) CHECK(9, I9_reservation_is_kept, holds)

/* I1: when a lease begins, there is no other.
 * I2: no other process still has the port bound. */
inline lease_begins(whose)
{
    I1(here.lease == NOBODY);
    for (a : 0 .. PROCESSES - 1) {
        I2(a == _pid || proc[a].next != UNPROBE || proc[a].on != me.on)
    }
    NAMED(I9(!here.reserved || me.by_name);)
    here.lease = whose;
    here.alone = NOBODY
}

#ifdef NAMES
/* I9: after each step, the line of a reserved port is in the file at its path. */
inline check_reservations()
{
    for (c : 0 .. PORTS - 1) {
        I9(!port[c].reserved || (port[c].exists && port[c].line[AT_PATH] == COUNTS))
    }
}
#endif

/* The attempt writes its record. So the process that it could not see has lost its own
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
 * process is working on it, and none interferes before it ends. Here a task begins: an
 * attempt that may be alone, or one that interferes. */
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
         * with a lease, that child must end too. */
        found = found && !(here.orphaned[a] && here.lock[here.left[a]] == LEFT_TO(a))
#endif
    }
    here.alone = (found -> OF(_pid) : NOBODY)
}

/* I3, I4: an attempt fails here. */
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
        I4(!found); /* released, but a process still has the lock */
        I3(found);
        here.alone = NOBODY
    :: else
    fi
}

/* I5: the last action of a copy in a forked child has ended no lease. */
inline copy_ends(p)
{
    for (a : 0 .. PROCESSES - 1) {
        I5(port[p].lease != OF(a) || port[p].lock[port[p].fd[a]] == OF(a))
    }
    I5(!(port[p].lease == BY_DESCRIPTOR || IS(HELD_TWICE, port[p].lease)) ||
       port[p].lock[AT_PATH] != NOBODY)
}
