/*
 * The size of the search, and the output. Set with -D:
 *   PROCESSES  number of processes at a time, 2 or 3: a process that dies makes room for another
 *   PORTS      number of ports, 1 or 2
 *   FORK       processes also fork, execute programs and pass descriptors on
 *   NO_PASSING processes do not pass leases to processes that they record
 *   NAMES      processes also reserve ports by name
 *   SYMMETRY   explore only one of several states that differ only in which process is
 *              which; the names in a trail are then meaningless
 *   PROMISE    number of the only promise to check; without it, all are checked
 *   COVERAGE   print each step the first time it is taken
 */

#ifndef PROCESSES
#define PROCESSES 3
#endif
#ifndef PORTS
#define PORTS 1
#endif
#ifndef PROMISE
#define PROMISE 0
#endif

#if PROCESSES > 2
#define EACH_PROCESS(step, p) step(p, 0) step(p, 1) step(p, 2)
#else
#define EACH_PROCESS(step, p) step(p, 0) step(p, 1)
#endif
#if PORTS > 1
#define EACH_PORT(steps) steps(0) steps(1)
#else
#define EACH_PORT(steps) steps(0)
#endif

/* Parts that exist only if processes fork, or only if they do not. */
#ifdef FORK
#define FORKING(text) text
#define NOT_FORKING(text)
#else
#define FORKING(text)
#define NOT_FORKING(text) text
#endif

/* Parts that exist only if ports are reserved. */
#ifdef NAMES
#define NAMED(text) text
#else
#define NAMED(text)
#endif

#ifdef NO_PASSING
#define PASSING false
#else
#define PASSING true
#endif

/* One possible step of a process. `run` checks that at least one search takes it. */
#define STEP(name, guard, action) :: d_step { guard -> TAKEN(name) action; DONE }
#ifdef COVERAGE
#define TAKEN(name) \
    c_code { static int taken; if (!taken) { taken = 1; printf("taken: " #name "\n"); } };
#else
#define TAKEN(name)
#endif

/* Local variables of the inlines, used within one step and cleared after it. */
byte a, b, c, d, e, inode, heir, found;
int first, second;

inline clear()
{
    a = 0; b = 0; c = 0; d = 0; e = 0; inode = 0; heir = 0; found = 0; first = 0; second = 0
}

/* For the trail. */
#define NAME(q) ('A' + (q))
#define SAY(text) printf(text, NAME(_pid))
#define SAY_AT(text, p) printf(text, NAME(_pid), 4000 + p)
