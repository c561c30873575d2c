/* A small server of which the tests make two builds: with -DNEW some of its functions do something else.
   It answers each line on stdin with a line; see serve(). Its threads call tick() all the time. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define KEEP __attribute__((noinline, noclone))

static volatile unsigned long counter;
#if defined RESIZED
static volatile int limits[6] = {10, 20, 30, 40};
#elif defined REVALUED
static volatile int limits[4] = {10, 20, 30, 41};
#else
static volatile int limits[4] = {10, 20, 30, 40};
#endif
static const char *const names[] = {"zero", "one", "two", "three", "four", "five"};
static char last[32];

#ifdef NEW
/* Moves what follows, so that most functions of the new build lie elsewhere and do the same. */
KEEP int unrelated(int a, int b) { return a * 31 + b * 7 + (a ^ b) + (int)counter; }
#endif

/* The same in both builds. */
KEEP int scale(int value) { return value * 3 + limits[0]; }
KEEP void tick(void) {
    counter++;
    usleep(500);
}
KEEP const char *name_of(unsigned n) { return n < 6 ? names[n] : "many"; }

/* A number only. */
#ifdef NEW
KEEP int version(void) { return 2; }
#else
KEEP int version(void) { return 1; }
#endif

/* The new body is shorter. */
KEEP int quota(int n) {
#ifdef NEW
    return n > limits[3] ? limits[3] : n;
#else
    int sum = 0;
    for (int i = 0; i < 4; i++)
        sum += limits[i] > n ? n : scale(limits[i]);
    return sum + (int)strlen(last);
#endif
}

/* The new body is longer, has a new text, a new helper, and calls things of the old build. */
#ifdef NEW
KEEP static int checked(const char *text) {
    int bad = 0;
    for (; *text; text++)
        bad += *text == '%' || *text == '/' || *text == '\\';
    return bad;
}
#endif
KEEP int store(const char *text) {
#ifdef NEW
    if (strlen(text) >= sizeof last) {
        printf("too long by far: ");
        return -1;
    }
    if (checked(text)) {
        printf("refused with a word: %s ", name_of(3));
        return -2;
    }
#endif
    strncpy(last, text, sizeof last - 1);
    return scale((int)strlen(text));
}

/* A switch with a jump table, with another case in the new build. */
KEEP int weigh(int kind, int n) {
    switch (kind) {
    case 0: return n + limits[0];
    case 1: return n * limits[1];
    case 2: return n - limits[2];
    case 3: return scale(n);
    case 4: return n ^ limits[3];
    case 5: return (int)strlen(name_of((unsigned)n));
#ifdef NEW
    case 6: return scale(scale(n));
    case 7: return n + version();
#endif
    default: return -1;
    }
}

/* What a patch cannot bring. */
struct part {
#ifdef LAYOUT
    long added;
#endif
    int size, weight;
};
KEEP int part_size(const struct part *p) { return p->size + p->weight; }
static struct part *volatile current;

#if defined RESIZED || defined REVALUED
KEEP int remember(int n) { return n + limits[n & 3]; }
#elif defined IMPORT
KEEP int remember(int n) { return getpriority(PRIO_PROCESS, 0) + n; }
#elif defined LARGE || defined HUGE
#define FOUR(x) x x x x
KEEP int remember(int n) {
#ifdef HUGE
    __asm__ volatile(".fill 25000, 8, 0x0000000000841f0f"); /* nops of eight bytes */
#endif
    FOUR(FOUR(FOUR(FOUR(FOUR(counter += n * 3;)))))
    return n + 1000;
}
#elif defined GLOBAL
static int history[16];
KEEP int remember(int n) { return history[n & 15]++ + n; }
#else
KEEP int remember(int n) { return n; }
#endif

/* A caller that waits in the middle of its body, so that there is a return address into it; a thread is in it for good
   where the server is run with an argument. */
KEEP int waits(int rounds) {
    int sum = 0;
    do {
        usleep(1000);
#ifdef NEW
        sum += scale(rounds) + scale(limits[1]);
#else
        sum += scale(rounds) + scale(limits[1]) + scale(limits[2]) + version();
#endif
    } while (rounds-- != 0);
    return sum;
}

static void *wait_long(void *unused) {
    /* On the stack for good, and no return address. */
    const char *volatile kept = (const char *)version + 5;
    int sum = waits(1 << 30);
    return sum && kept ? unused : NULL;
}

static void *work(void *unused) {
    for (;;)
        tick();
    return unused;
}

static void serve(char *line) {
    int kind = atoi(line + 1);
    switch (line[0]) {
    case 'v': printf("%d\n", version()); break;
    case 'q': printf("%d\n", quota(kind)); break;
    case 's': printf("%d\n", store(line + 2)); break;
    case 'w': printf("%d\n", weigh(kind, 7)); break;
    case 'k': limits[1] += kind, limits[2] += kind, limits[3] -= kind; break;
    case 'p': printf("%d\n", current ? part_size(current) : 0); break;
    case 'l': printf("%d\n", waits(kind)); break;
    case 'r': printf("%d\n", remember(kind)); break;
    default: printf("%lu %s\n", counter, last);
    }
    fflush(stdout);
}

int main(int argc, char **argv) {
    (void)argv;
    pthread_t thread;
    char line[128];
    for (int i = 0; i < 2; i++)
        pthread_create(&thread, NULL, work, NULL);
    if (argc > 3)
        pthread_create(&thread, NULL, wait_long, NULL);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        serve(line);
    }
    return 0;
}
