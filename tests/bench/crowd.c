/* crowd: many readers of one stream of Server-Sent Events in one thread, each of which checks what it gets.
 *
 * Usage: crowd PORT PATH READERS dateline|whole|marks [RECEIVE_BYTES]
 *   dateline  positions come as `id: <epoch>-<n>`; a jump is right where a `live` follows it
 *   whole     the same, of a feed in which every position brings a frame: any jump is a gap
 *   marks     another server: the number is the q of the mark @t=<monotonic ns>;q=<number>@ in the data
 * The mark's t is when the change was handed in; latency is from there to the read that completes its frame.
 *
 * Commands, a line each, on standard input; each is answered by one line of JSON on standard output:
 *   join A B      readers A to B-1 connect, with Last-Event-ID if they hold one, and stay
 *   leave A B     they go, with a reset
 *   cut A B       they go and are back at once
 *   stall A B     they read no more; resume A B: they do again
 *   live S        waits at most S seconds until all who joined and read are live
 *   until N S     waits at most S seconds until all who joined and read are live and hold number N
 *   report        what came since the last report
 * A reader whose stream ends comes back after the delay that `retry` gave it, as a browser does. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LINE 1024          /* of each line, what is looked at */
#define BUCKET_NS 20000ull /* latencies are counted in steps of 20 us, up to 20 s */
#define BUCKETS 1000000
#define INPUT UINT32_MAX
#define AGAIN_MS 1000

enum { ABSENT, CONNECTING, HEAD, BODY, AWAY };
enum { NOTHING, CHANGE, LIVE, SNAPSHOT, RESET, BYE, OTHER };

struct reader {
  int fd, kind, first_line;
  int64_t epoch, id_epoch, id_n, sent, q;
  uint64_t due;
  unsigned retry_ms, length;
  char line[LINE + 1];
};

static struct reader *readers;
/* Apart and dense: the ends of waits are looked for in these after every turn. */
static int64_t *last;
static uint8_t *state, *live, *stalled, *jumped;
static int N, epoll, port, of_marks, whole, receive_bytes;
static const char *path;
static uint64_t deliveries, bytes, reads, gaps, repeats, resets, ended, byes, buckets[BUCKETS], slowest, away;
static char input[65536];

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double cpu(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(int i, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.u32 = i};
  epoll_ctl(epoll, operation, readers[i].fd, &event);
}

static void leave(int i) {
  if (state[i] == ABSENT) return;
  if (state[i] == AWAY) away--;
  else close(readers[i].fd);
  state[i] = ABSENT;
  live[i] = 0;
}

static void come_back_later(int i, unsigned after_ms) {
  leave(i);
  state[i] = AWAY;
  readers[i].due = now() + after_ms * 1000000ull;
  away++;
}

static void join(int i) {
  struct reader *r = &readers[i];
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  struct linger with_a_reset = {1, 0}; /* leaves no TIME_WAIT behind, which would use up the ports */
  int one = 1;
  leave(i);
  r->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (r->fd < 0) { perror("socket"); exit(2); }
  setsockopt(r->fd, SOL_SOCKET, SO_LINGER, &with_a_reset, sizeof with_a_reset);
  setsockopt(r->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (receive_bytes) setsockopt(r->fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
  r->kind = r->length = jumped[i] = 0;
  r->first_line = 1;
  r->sent = r->q = 0;
  state[i] = CONNECTING;
  stalled[i] = 0;
  if (connect(r->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) { ended++; come_back_later(i, AGAIN_MS); return; }
  watch(i, EPOLL_CTL_ADD, EPOLLOUT);
}

static void ask(int i) {
  char request[1024], resume[64] = "";
  if (last[i] && !of_marks)
    snprintf(resume, sizeof resume, "Last-Event-ID: %lld-%lld\r\n", (long long)readers[i].epoch, (long long)last[i]);
  int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n%s\r\n",
                   path, port, resume);
  if (send(readers[i].fd, request, n, MSG_NOSIGNAL) != n) { ended++; come_back_later(i, AGAIN_MS); return; }
  state[i] = HEAD;
  watch(i, EPOLL_CTL_MOD, EPOLLIN);
}

static void hold(int i, int64_t n, int contiguous) {
  if (last[i] && n <= last[i]) { repeats++; return; }
  if (last[i] && n != last[i] + 1 && contiguous) gaps++;
  else if (last[i] && n != last[i] + 1) jumped[i] = 1;
  last[i] = n;
}

static void delivered(struct reader *r, uint64_t at) {
  deliveries++;
  if (!r->sent) return;
  uint64_t taken = at > (uint64_t)r->sent ? at - r->sent : 0;
  buckets[taken / BUCKET_NS < BUCKETS ? taken / BUCKET_NS : BUCKETS - 1]++;
  if (taken > slowest) slowest = taken;
}

static void dispatch(int i, uint64_t at) {
  struct reader *r = &readers[i];
  if (of_marks) {
    if (r->q) { hold(i, r->q, 1); delivered(r, at); }
  } else if (r->kind == CHANGE) {
    r->epoch = r->id_epoch;
    hold(i, r->id_n, whole);
    delivered(r, at);
  } else if (r->kind == LIVE || r->kind == SNAPSHOT) {
    if (last[i] > r->id_n) repeats++;
    if (whole && r->kind == LIVE && last[i] && last[i] != r->id_n) gaps++;
    r->epoch = r->id_epoch;
    last[i] = r->id_n;
    jumped[i] = 0;
    if (r->kind == LIVE) live[i] = 1;
  } else if (r->kind == RESET) {
    resets++;
    last[i] = live[i] = 0;
  } else if (r->kind == BYE) byes++;
  r->kind = NOTHING;
  r->sent = r->q = 0;
}

static void end_line(int i, uint64_t at) {
  struct reader *r = &readers[i];
  char *line = r->line, *mark;
  line[r->length] = 0;
  if (state[i] == HEAD) {
    if (r->first_line && strncmp(line, "HTTP/1.1 200", 12)) { fprintf(stderr, "answered %s\n", line); exit(3); }
    if (!strcmp(line, "\r")) { state[i] = BODY; live[i] = of_marks; }
    r->first_line = 0;
  } else if (!r->length) dispatch(i, at);
  else if (!strncmp(line, "event: ", 7)) {
    char *kind = line + 7;
    r->kind = !strcmp(kind, "entry") || !strcmp(kind, "retraction") || !strcmp(kind, "feed") ? CHANGE
              : !strcmp(kind, "live") ? LIVE : !strcmp(kind, "snapshot") ? SNAPSHOT
              : !strcmp(kind, "reset") ? RESET : !strcmp(kind, "bye") ? BYE : OTHER;
  } else if (!strncmp(line, "id: ", 4) && !of_marks) {
    char *dash;
    r->id_epoch = strtoll(line + 4, &dash, 10);
    r->id_n = strtoll(dash + 1, NULL, 10);
  } else if (!strncmp(line, "retry: ", 7)) r->retry_ms = atoi(line + 7);
  else if (!strncmp(line, "data: ", 6) && (mark = strstr(line, "@t="))) {
    r->sent = strtoll(mark + 3, &mark, 10);
    r->q = strtoll(mark + 3, NULL, 10);
  }
  r->length = 0;
}

static void readable(int i) {
  struct reader *r = &readers[i];
  ssize_t n = recv(r->fd, input, sizeof input, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) { ended++; come_back_later(i, r->retry_ms ? r->retry_ms : AGAIN_MS); return; }
  reads++;
  bytes += n;
  uint64_t at = now();
  for (char *from = input, *end = input + n; from < end;) {
    char *newline = memchr(from, '\n', end - from);
    size_t length = (newline ? newline : end) - from, room = LINE - r->length;
    memcpy(r->line + r->length, from, length < room ? length : room);
    r->length += length < room ? length : room;
    if (!newline) break;
    end_line(i, at);
    from = newline + 1;
  }
}

static int late(int64_t number) {
  int count = 0;
  for (int i = 0; i < N; i++)
    count += state[i] != ABSENT && !stalled[i] && !(state[i] == BODY && live[i] && !jumped[i] && last[i] >= number);
  return count;
}

static double quantile(double share) {
  uint64_t total = 0, seen = 0;
  for (int b = 0; b < BUCKETS; b++) total += buckets[b];
  for (int b = 0; b < BUCKETS; b++)
    if (total && (seen += buckets[b]) > (uint64_t)(total * share)) return (b + 0.5) * BUCKET_NS / 1e6;
  return slowest / 1e6;
}

static void report(void) {
  for (int i = 0; i < N; i++) gaps += state[i] == BODY && live[i] && !stalled[i] && jumped[i];
  printf("{\"deliveries\":%lu,\"bytes\":%lu,\"reads\":%lu,\"gaps\":%lu,\"repeats\":%lu,\"resets\":%lu,\"ended\":%lu,"
         "\"byes\":%lu,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,\"cpu_seconds\":%.6f}\n",
         deliveries, bytes, reads, gaps, repeats, resets, ended, byes, quantile(0.5), quantile(0.99), slowest / 1e6, cpu());
  deliveries = bytes = reads = gaps = repeats = resets = ended = byes = slowest = 0;
  memset(buckets, 0, sizeof buckets);
}

int main(int count, char **given) {
  if (count < 5) { fprintf(stderr, "see the head of crowd.c\n"); return 2; }
  port = atoi(given[1]);
  path = given[2];
  N = atoi(given[3]);
  of_marks = !strcmp(given[4], "marks");
  whole = !strcmp(given[4], "whole");
  receive_bytes = count > 5 ? atoi(given[5]) : 0;
  readers = calloc(N, sizeof *readers);
  last = calloc(N, sizeof *last);
  state = calloc(N, 1), live = calloc(N, 1), stalled = calloc(N, 1), jumped = calloc(N, 1);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  epoll = epoll_create1(0);
  struct epoll_event of_input = {.events = EPOLLIN, .data.u32 = INPUT}, events[1024];
  epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &of_input);
  char commands[4096];
  size_t held = 0;
  int waiting = 0;
  int64_t number = 0;
  uint64_t began = 0, deadline = 0;
  for (;;) {
    int n = epoll_wait(epoll, events, 1024, waiting || away ? 20 : -1);
    for (int e = 0; e < n; e++) {
      uint32_t i = events[e].data.u32;
      if (i != INPUT) {
        if (state[i] == CONNECTING) ask(i);
        else if (state[i] == HEAD || (state[i] == BODY && (!stalled[i] || events[e].events & (EPOLLHUP | EPOLLERR)))) readable(i);
        continue;
      }
      ssize_t got = read(0, commands + held, sizeof commands - 1 - held);
      if (got <= 0) return 0;
      commands[held += got] = 0;
      char *newline;
      while ((newline = strchr(commands, '\n'))) {
        char word[16];
        double a = 0, b = 0;
        sscanf(commands, "%15s %lf %lf", word, &a, &b);
        held -= newline + 1 - commands;
        memmove(commands, newline + 1, held + 1);
        if (!strcmp(word, "report")) report();
        else if (!strcmp(word, "live") || !strcmp(word, "until")) {
          waiting = 1;
          number = word[0] == 'u' ? (int64_t)a : 0;
          began = now();
          deadline = began + (uint64_t)((word[0] == 'u' ? b : a) * 1e9);
        } else {
          int from = (int)a, to = (int)b < N ? (int)b : N;
          if (word[0] == 'l' || word[0] == 'c')
            for (int r = from; r < to; r++) leave(r);
          for (int r = from; r < to; r++)
            if (word[0] == 'j' || word[0] == 'c') join(r);
            else if (word[0] != 'l' && state[r] == BODY) {
              stalled[r] = word[0] == 's';
              watch(r, EPOLL_CTL_MOD, stalled[r] ? 0 : EPOLLIN);
            }
          printf("{}\n");
        }
      }
      fflush(stdout);
    }
    uint64_t at = away ? now() : 0;
    for (int i = 0; i < N && away; i++)
      if (state[i] == AWAY && readers[i].due <= at) join(i);
    if (waiting) {
      int behind = late(number);
      if (behind && now() < deadline) continue;
      waiting = 0;
      printf("{\"seconds\":%.6f,\"late\":%d}\n", (now() - began) / 1e9, behind);
      fflush(stdout);
    }
  }
}
