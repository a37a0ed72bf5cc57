/*
 * Which process is which makes no difference. With SYMMETRY, processes are sorted after each
 * step.
 */

#ifndef SYMMETRY
#define DONE NAMED(check_reservations();) clear()
#else
/* The processes are sorted by their state, as far as that is possible without comparing
 * which processes they refer to. */
#define DONE NAMED(check_reservations();) sort(); clear()

/* Identifies OF, LEFT_TO, DELEGATED_TO and so on; 0 and 5 or more name no process. */
#define KIND(v) (((v) + PROCESSES - 1) / PROCESSES)
#define NAMES_NONE(v) ((v) == 0 || KIND(v) > 4)

inline rank(order, q)
{
    order = ((proc[q].next * 5 + proc[q].task) * 2 + proc[q].on) * 7 + KIND(proc[q].seen);
    NAMED(order = (order * 2 + proc[q].by_name) * 3 + proc[q].line;)
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
    NAMED(EXCHANGE(proc[q].by_name, proc[r].by_name);)
    NAMED(EXCHANGE(proc[q].line, proc[r].line);)
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
