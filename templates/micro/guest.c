/*
 * The resident program of the micro guest, and its small commands.
 *
 * One static binary; the name it is called by says what it does:
 *   vmkit-guest   [TICK] the resident process: counter, UDP services, dirtier, power button; answers on SOCKET
 *   counter       prints the counter
 *   dirty         dirty SIZE [RATE] | stop | status
 *   edu-id        identification register of QEMU's "edu" PCI device
 *   renew SECONDS sets the clock (seconds since 1970), and has the kernel draw a new key for its random numbers from what
 *                 was written to /dev/urandom: one program for what a copy of a running guest does first
 *   load-modules  load-modules LIST: the kernel modules named in the file LIST, one path a line, in that order
 *   load-drivers  load-drivers TABLE: those that the devices of the PCI bus need; a line of the file TABLE is the pattern
 *                 of a modalias and the paths of the modules for it, in order
 *
 * The counter is a 64-bit integer that lives in this process's memory alone and grows by one every TICK ms, 10 if none
 * is given. A guest whose memory was moved, saved or restored whole goes on counting; one that was started anew begins
 * at 0.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <linux/input.h>
#include <linux/random.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SOCKET "/run/vmkit-guest.sock"
#define TICK_MS 10
#define SLEEP_NS 10000000L /* 10 ms: of the dirtier, between two bursts */
#define SECOND_NS 1000000000LL
#define PAGE 4096UL
#define RESERVE (16UL << 20) /* memory that the dirtier leaves to the rest of the guest */

static _Atomic uint64_t counter;
static int64_t tick_ns = TICK_MS * 1000000L;

/* The dirtier. `generation` tells a running thread that it has been replaced or stopped. */
static struct {
	_Atomic uint64_t generation;
	_Atomic uint64_t pages_written;
	pthread_mutex_t lock; /* guards what follows */
	uint64_t size;        /* bytes; 0: nothing runs */
	uint64_t rate;        /* bytes a second; 0: as fast as it goes */
	int64_t started_ns;
} dirtier = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * SECOND_NS + t.tv_nsec;
}

/* Sleep until a moment on the monotonic clock. */
static void sleep_until(int64_t ns)
{
	struct timespec t = { .tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		;
}

static void *count(void *unused)
{
	int64_t next = now_ns();

	(void)unused;
	for (;;) {
		next += tick_ns;
		/* After a pause the counter goes on from where it was; it does not make up for lost ticks. */
		if (next < now_ns())
			next = now_ns();
		sleep_until(next);
		atomic_fetch_add(&counter, 1);
	}
	return NULL;
}

/* ---- the dirtier */

struct dirty_job {
	uint64_t generation;
	uint64_t size, rate;
	volatile uint64_t *memory;
};

static void *dirty_thread(void *argument)
{
	struct dirty_job *job = argument;
	uint64_t pages = job->size / PAGE, page = 0, written = 0;
	int64_t start = now_ns();

	while (atomic_load(&dirtier.generation) == job->generation) {
		uint64_t due = 1024; /* pages until the next look at the generation */

		if (job->rate) {
			double elapsed = (double)(now_ns() - start) / SECOND_NS;
			uint64_t owed = (uint64_t)(elapsed * (double)job->rate / PAGE);

			due = owed > written ? owed - written : 0;
			if (due > pages) { /* behind: more than a whole pass is owed, so begin the account anew */
				due = pages;
				start = now_ns();
				written = 0;
			}
		}
		for (uint64_t i = 0; i < due; i++) {
			job->memory[page * (PAGE / sizeof(uint64_t))] += 1;
			page = page + 1 == pages ? 0 : page + 1;
		}
		written += due;
		atomic_fetch_add(&dirtier.pages_written, due);
		if (job->rate)
			sleep_until(now_ns() + SLEEP_NS);
	}
	munmap((void *)job->memory, job->size);
	free(job);
	return NULL;
}

/* Bytes from "64M", "1G", "4096"; 0 if it is not a size. */
static uint64_t parse_size(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);
	unsigned shift = 0;

	if (end == text || text[0] == '-')
		return 0;
	switch (*end) {
	case 'K': case 'k': shift = 10; end++; break;
	case 'M': case 'm': shift = 20; end++; break;
	case 'G': case 'g': shift = 30; end++; break;
	}
	if (!strcmp(end, "iB") || !strcmp(end, "B"))
		end += strlen(end);
	return *end || n > (UINT64_MAX >> shift) ? 0 : n << shift;
}

static const char *show_size(uint64_t n, char *out, size_t room)
{
	if (n >= (1UL << 20))
		snprintf(out, room, "%.1fM", (double)n / (1UL << 20));
	else
		snprintf(out, room, "%" PRIu64 "K", n >> 10);
	return out;
}

static uint64_t available_memory(void)
{
	char line[128];
	uint64_t kib = 0;
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib << 10;
}

static void dirty_stop(void)
{
	pthread_mutex_lock(&dirtier.lock);
	atomic_fetch_add(&dirtier.generation, 1);
	dirtier.size = 0;
	pthread_mutex_unlock(&dirtier.lock);
}

static void dirty_status(char *answer, size_t room)
{
	char size[32], rate[32], real[32];

	pthread_mutex_lock(&dirtier.lock);
	if (!dirtier.size) {
		snprintf(answer, room, "idle\n");
	} else {
		double seconds = (double)(now_ns() - dirtier.started_ns) / SECOND_NS;
		uint64_t bytes = atomic_load(&dirtier.pages_written) * PAGE;

		snprintf(answer, room, "dirtying %s at %s/s, measured %s/s\n", show_size(dirtier.size, size, sizeof size),
			 dirtier.rate ? show_size(dirtier.rate, rate, sizeof rate) : "max",
			 show_size(seconds > 0.001 ? (uint64_t)((double)bytes / seconds) : 0, real, sizeof real));
	}
	pthread_mutex_unlock(&dirtier.lock);
}

/* Write one word into every page of `size` bytes, round and round, at `rate` bytes of touched pages a second. */
static void dirty_start(const char *size_text, const char *rate_text, char *answer, size_t room)
{
	uint64_t size = parse_size(size_text) / PAGE * PAGE, rate = 0;
	struct dirty_job *job;
	pthread_t thread;

	if (!size) {
		snprintf(answer, room, "error: '%s' is not a size\n", size_text);
		return;
	}
	if (strcmp(rate_text, "max") && !(rate = parse_size(rate_text))) {
		snprintf(answer, room, "error: '%s' is not a rate\n", rate_text);
		return;
	}
	dirty_stop();
	usleep(20000); /* lets the memory of the one before go */
	if (size + RESERVE > available_memory()) {
		snprintf(answer, room, "error: not that much memory: %" PRIu64 "M available\n", available_memory() >> 20);
		return;
	}
	job = calloc(1, sizeof *job);
	if (job)
		job->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (!job || job->memory == MAP_FAILED) {
		snprintf(answer, room, "error: no memory\n");
		free(job);
		return;
	}
	job->size = size;
	job->rate = rate;
	pthread_mutex_lock(&dirtier.lock);
	job->generation = atomic_fetch_add(&dirtier.generation, 1) + 1;
	atomic_store(&dirtier.pages_written, 0);
	dirtier.size = size;
	dirtier.rate = rate;
	dirtier.started_ns = now_ns();
	pthread_mutex_unlock(&dirtier.lock);
	if (pthread_create(&thread, NULL, dirty_thread, job)) {
		dirty_stop();
		snprintf(answer, room, "error: no thread\n");
		return;
	}
	pthread_detach(thread);
	dirty_status(answer, room);
}

/* ---- services */

static void on_command(char *line, char *answer, size_t room)
{
	char *words[4] = { NULL };
	int n = 0;

	for (char *w = strtok(line, " \n"); w && n < 4; w = strtok(NULL, " \n"))
		words[n++] = w;
	if (n == 1 && !strcmp(words[0], "counter")) {
		snprintf(answer, room, "%" PRIu64 "\n", atomic_load(&counter));
	} else if (n == 2 && !strcmp(words[0], "dirty") && !strcmp(words[1], "stop")) {
		dirty_stop();
		dirty_status(answer, room);
	} else if ((n == 2 && !strcmp(words[0], "dirty") && !strcmp(words[1], "status")) ||
		   (n == 1 && !strcmp(words[0], "dirty"))) {
		dirty_status(answer, room);
	} else if ((n == 2 || n == 3) && !strcmp(words[0], "dirty")) {
		dirty_start(words[1], n == 3 ? words[2] : "max", answer, room);
	} else {
		snprintf(answer, room, "error: dirty SIZE [RATE] | stop | status\n");
	}
}

static void *serve_commands(void *argument)
{
	int server = *(int *)argument;

	for (;;) {
		char line[256] = "", answer[256] = "";
		int client = accept4(server, NULL, NULL, SOCK_CLOEXEC);

		if (client < 0)
			continue;
		if (read(client, line, sizeof line - 1) > 0) {
			on_command(line, answer, sizeof answer);
			if (write(client, answer, strlen(answer)) < 0)
				perror("vmkit-guest: answer");
		}
		close(client);
	}
	return NULL;
}

/* A UDP socket on every address, IPv4 and, where the kernel has it, IPv6. */
static int udp_socket(uint16_t port)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	int off = 0, fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd >= 0) {
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
		if (!bind(fd, (struct sockaddr *)&six, sizeof six))
			return fd;
		close(fd);
	}
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&four, sizeof four)) {
		perror("vmkit-guest: UDP");
		exit(1);
	}
	return fd;
}

/* Port 7 (RFC 862) sends back what came; port 7007 sends the counter as decimal text. */
static void *serve_udp(void *unused)
{
	struct pollfd fds[2] = { { .fd = udp_socket(7), .events = POLLIN }, { .fd = udp_socket(7007), .events = POLLIN } };
	static char data[65536];

	(void)unused;
	for (;;) {
		poll(fds, 2, -1);
		for (int i = 0; i < 2; i++) {
			struct sockaddr_storage peer;
			socklen_t length = sizeof peer;
			ssize_t n;

			if (!(fds[i].revents & POLLIN))
				continue;
			n = recvfrom(fds[i].fd, data, sizeof data, MSG_DONTWAIT, (struct sockaddr *)&peer, &length);
			if (n < 0)
				continue;
			if (i == 1)
				n = snprintf(data, sizeof data, "%" PRIu64, atomic_load(&counter));
			/* An answer that cannot be sent is lost, as on any network. */
			(void)!sendto(fds[i].fd, data, (size_t)n, 0, (struct sockaddr *)&peer, length);
		}
	}
	return NULL;
}

/* The ACPI power button is an input device; process 1 (busybox init) powers off on SIGUSR2. */
static void *watch_power_button(void *unused)
{
	struct pollfd fds[8];
	nfds_t n = 0;

	(void)unused;
	for (int i = 0; i < 8; i++) {
		char path[32];

		snprintf(path, sizeof path, "/dev/input/event%d", i);
		fds[n].fd = open(path, O_RDONLY | O_CLOEXEC);
		fds[n].events = POLLIN;
		n += fds[n].fd >= 0;
	}
	while (n && poll(fds, n, -1) > 0) {
		for (nfds_t i = 0; i < n; i++) {
			struct input_event event;

			if (!(fds[i].revents & POLLIN) || read(fds[i].fd, &event, sizeof event) != sizeof event)
				continue;
			if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
				kill(1, SIGUSR2);
		}
	}
	return NULL;
}

static int resident(const char *tick)
{
	char *end;
	long ms = strtol(tick, &end, 10);
	struct sockaddr_un where = { .sun_family = AF_UNIX, .sun_path = SOCKET };
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	void *(*const threads[])(void *) = { count, serve_udp, watch_power_button, serve_commands };

	/* One minute is 60000: more would be a mistake in the unit. */
	if (!*end && ms >= 1 && ms <= 60000)
		tick_ns = ms * 1000000L;
	else if (*tick)
		fprintf(stderr, "vmkit-guest: vmkit.tick=%s is not a number of ms from 1 to 60000; it is %d\n", tick, TICK_MS);
	unlink(SOCKET);
	if (server < 0 || bind(server, (struct sockaddr *)&where, sizeof where) || listen(server, 16)) {
		perror("vmkit-guest: " SOCKET);
		return 1;
	}
	/* The caller goes on once the socket is there. */
	if (daemon(0, 1))
		return 1;
	for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, threads[i], &server)) {
			perror("vmkit-guest: thread");
			return 1;
		}
	}
	for (;;)
		pause();
}

/* ---- commands */

static int ask(int argc, char **argv)
{
	struct sockaddr_un where = { .sun_family = AF_UNIX, .sun_path = SOCKET };
	char text[256] = "", *base = strrchr(argv[0], '/');
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ssize_t n;

	strncat(text, base ? base + 1 : argv[0], sizeof text - 1);
	for (int i = 1; i < argc; i++) {
		strncat(text, " ", sizeof text - strlen(text) - 1);
		strncat(text, argv[i], sizeof text - strlen(text) - 1);
	}
	if (fd < 0 || connect(fd, (struct sockaddr *)&where, sizeof where) || write(fd, text, strlen(text)) < 0) {
		perror(SOCKET);
		return 1;
	}
	n = read(fd, text, sizeof text - 1);
	if (n <= 0)
		return 1;
	text[n] = 0;
	if (!strncmp(text, "error: ", 7)) {
		fputs(text, stderr);
		return 1;
	}
	fputs(text, stdout);
	return 0;
}

/* First number in a file of sysfs; 0 if there is none. */
static uint64_t sysfs_number(const char *device, const char *file)
{
	char path[300], text[64] = "";
	int fd;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", device, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
		text[0] = 0;
	if (fd >= 0)
		close(fd);
	return strtoull(text, NULL, 16);
}

/*
 * QEMU's edu device (docs/specs/edu.rst: PCI 1234:11e8, BAR 0 of 1 MiB, identification at offset 0, 0xRRrr00ed) has no
 * migration state, so on the destination of a migration its BAR and command register are those after reset while this
 * kernel believes otherwise. Both are written each time, as the kernel set them at boot.
 */
static int read_edu(const char *device)
{
	uint64_t bar = sysfs_number(device, "resource");
	uint32_t low = (uint32_t)bar;
	uint16_t command = 0;
	char path[300];
	volatile uint32_t *registers;
	int config, memory;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", device);
	config = open(path, O_RDWR | O_CLOEXEC);
	if (config < 0 || !bar || pwrite(config, &low, 4, 0x10) != 4 || pread(config, &command, 2, 4) != 2)
		goto failed;
	command |= 2; /* memory space */
	if (pwrite(config, &command, 2, 4) != 2)
		goto failed;
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource0", device);
	memory = open(path, O_RDWR | O_CLOEXEC);
	if (memory < 0)
		goto failed;
	registers = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (registers == MAP_FAILED)
		goto failed;
	printf("0x%08x\n", registers[0]);
	return 0;
failed:
	perror(path);
	return 1;
}

static int edu_id(void)
{
	DIR *bus = opendir("/sys/bus/pci/devices");
	struct dirent *e;

	while (bus && (e = readdir(bus)))
		if (e->d_name[0] != '.' && sysfs_number(e->d_name, "vendor") == 0x1234 &&
		    sysfs_number(e->d_name, "device") == 0x11e8)
			return read_edu(e->d_name);
	puts("none");
	return 0;
}

/* random(4), RNDRESEEDCRNG: without it what is written there tells after a minute at the earliest. */
static int renew(const char *seconds)
{
	struct timespec now = { .tv_sec = strtoll(seconds, NULL, 10) };
	int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

	if (clock_settime(CLOCK_REALTIME, &now))
		perror("clock");
	if (fd < 0 || ioctl(fd, RNDRESEEDCRNG)) {
		perror("/dev/urandom");
		return 1;
	}
	return 0;
}

/* A module whose hardware is absent, or that is there already, is no reason to stop. */
static void load_module(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
		perror(path);
	if (fd >= 0)
		close(fd);
}

static int load_modules(const char *list)
{
	char path[300];
	FILE *f = fopen(list, "re");

	if (!f) {
		perror(list);
		return 1;
	}
	while (fgets(path, sizeof path, f)) {
		path[strcspn(path, "\n")] = 0;
		load_module(path);
	}
	fclose(f);
	return 0;
}

/* The modaliases of the PCI devices; returns how many. */
static int read_aliases(char aliases[][96], int room)
{
	DIR *bus = opendir("/sys/bus/pci/devices");
	struct dirent *e;
	int n = 0;

	while (bus && n < room && (e = readdir(bus))) {
		char path[300];
		int fd;
		ssize_t length;

		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/modalias", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		length = fd < 0 ? -1 : read(fd, aliases[n], sizeof aliases[n] - 1);
		if (fd >= 0)
			close(fd);
		if (length <= 0)
			continue;
		aliases[n][length] = 0;
		aliases[n][strcspn(aliases[n], "\n")] = 0;
		n++;
	}
	if (bus)
		closedir(bus);
	return n;
}

static int load_drivers(const char *table)
{
	static char aliases[256][96], done[1024], line[4096];
	int n = read_aliases(aliases, 256);
	FILE *f = fopen(table, "re");

	if (!f) {
		perror(table);
		return 1;
	}
	while (fgets(line, sizeof line, f)) {
		char *rest, *pattern, *path;

		line[strcspn(line, "\n")] = 0;
		pattern = strtok_r(line, " ", &rest);
		if (!pattern || !strcmp(rest, done))
			continue;
		for (int i = 0; i < n; i++) {
			if (fnmatch(pattern, aliases[i], 0))
				continue;
			/* Most drivers have many patterns, one after the other. */
			snprintf(done, sizeof done, "%s", rest);
			while ((path = strtok_r(NULL, " ", &rest)))
				load_module(path);
			break;
		}
	}
	fclose(f);
	return 0;
}

int main(int argc, char **argv)
{
	const char *base = strrchr(argv[0], '/');

	base = base ? base + 1 : argv[0];
	if (!strcmp(base, "vmkit-guest"))
		return resident(argc == 2 ? argv[1] : "");
	if (!strcmp(base, "edu-id"))
		return edu_id();
	if (!strcmp(base, "renew"))
		return argc == 2 ? renew(argv[1]) : 2;
	if (!strcmp(base, "load-modules"))
		return argc == 2 ? load_modules(argv[1]) : 2;
	if (!strcmp(base, "load-drivers"))
		return argc == 2 ? load_drivers(argv[1]) : 2;
	return ask(argc, argv);
}
