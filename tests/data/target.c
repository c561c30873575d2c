/* A process to be patched: threads that call answer() all the time, and a console on stdin/stdout that tells of it. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static volatile unsigned long counter;
static volatile unsigned seen;

__attribute__((noinline)) unsigned answer(void) { return 0x11223344; }

/* straddle() returns a constant whose bytes lie on both sides of a page boundary. hot() never leaves its four bytes. */
unsigned straddle(void);
void hot(void);
__asm__(".text\n.balign 4096\n.skip 4093, 0x90\n.globl straddle\n.type straddle, @function\n"
        "straddle: movl $0x01020304, %eax\n ret\n.size straddle, .-straddle\n.skip 32, 0x90\n"
        ".globl hot\n.type hot, @function\nhot: pause\n jmp hot\n.size hot, .-hot\n.skip 32, 0x90\n");

static void *work(void *unused) {
    (void)unused;
    for (;;) {
        seen = answer();
        counter++;
        usleep(1000);
    }
    return NULL;
}

static void *spin(void *unused) {
    hot();
    return unused;
}

int main(int argc, char **argv) {
    pthread_t thread;
    char line[16];
    for (int i = 0; i < 3; i++)
        pthread_create(&thread, NULL, work, NULL);
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "spin"))
            pthread_create(&thread, NULL, spin, NULL);
    while (fgets(line, sizeof line, stdin)) {
        printf("%x %x %lu\n", answer(), straddle(), counter);
        fflush(stdout);
    }
    return 0;
}
