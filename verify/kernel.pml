/*
 * How the operating system treats files, descriptors and processes.
 */

/* Which inherited descriptors the model tracks once the opener has closed its own. They
 * matter only if they have the lock: then no other process can lock the file. */
#define MATTERS(p, description) (port[p].lock[inode] == description)

/* found: a process has opened inode n. */
inline find(p, n)
{
    found = false;
    for (a : 0 .. PROCESSES - 1) {
        found = found || port[p].fd[a] == n
    }
}

/* An unlinked file that no process has opened itself is unreachable, even if some
 * processes have inherited it. */
inline reclaim(p, n)
{
    find(p, n);
    if
    :: !found && n != AT_PATH ->
        port[p].lock[n] = NOBODY;
        port[p].record[n] = NONE;
        port[p].extended[n] = false;
        NAMED(port[p].line[n] = NONE;)
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

/* unlink(2): the file is no longer at the path, and gets a new number. */
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
    NAMED(port[p].line[inode] = port[p].line[AT_PATH];)
    NAMED(port[p].line[AT_PATH] = NONE;)
    port[p].exists = false;
    reclaim(p, inode)
}

/* The process that a description of `inode` is named after has closed it. From now on it
 * is named after another process that inherited it. Its lock ends with the last of them. */
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

/* close(2) of the descriptor that the process opened. */
inline close_own(p, as_orphan)
{
    inode = port[p].fd[_pid];
    port[p].fd[_pid] = 0;
    leave(p, OF(_pid), as_orphan)
}

#ifdef FORK
/* close(2) of the descriptor that it inherited. */
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
            /* It continues in the processes that inherited the lock. */
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
