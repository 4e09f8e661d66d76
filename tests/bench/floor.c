/* floor: the least that a fan-out can do. Usage: floor PORT
 *
 * GET subscribes for good; the body of a POST goes to every subscriber as the data of one frame, by one send(2) each. POSTs that
 * arrive together go out together: what waits is one write. A subscriber whose socket is full is dropped: the readers of the bench,
 * who check what they get, then say so. Nothing else of HTTP is here. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define FILES_MAX 65536
#define BYTES_MAX (4 << 20)

static int subscribers[FILES_MAX], place[FILES_MAX], count;
static char requests[BYTES_MAX], frames[BYTES_MAX];
static size_t held, waiting;

static void subscribe(int fd) {
  static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\r\n";
  send(fd, head, sizeof head - 1, MSG_NOSIGNAL);
  place[fd] = count;
  subscribers[count++] = fd;
}

static void drop(int fd) {
  if (place[fd] >= 0) {
    subscribers[place[fd]] = subscribers[--count];
    place[subscribers[count]] = place[fd];
  } else held = 0;
  close(fd);
}

static void fan_out(void) {
  for (int s = count - 1; s >= 0; s--)
    if (send(subscribers[s], frames, waiting, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)waiting) shutdown(subscribers[s], SHUT_RDWR);
  waiting = 0;
}

/* One publisher at a time: what it sent is kept until its requests are whole. */
static void publish(int fd) {
  int answers = 0;
  char *from = requests, *end = requests + held, *body;
  while ((body = memmem(from, end - from, "\r\n\r\n", 4))) {
    body += 4;
    char *length = strcasestr(from, "content-length:");
    size_t bytes = length && length < body ? strtoul(length + 15, NULL, 10) : 0;
    if ((size_t)(end - body) < bytes || waiting + bytes + 16 > sizeof frames) break;
    waiting += sprintf(frames + waiting, "data: ");
    memcpy(frames + waiting, body, bytes);
    memcpy(frames + waiting + bytes, "\n\n", 2);
    waiting += bytes + 2;
    from = body + bytes;
    answers++;
  }
  held = end - from;
  memmove(requests, from, held);
  requests[held] = 0;
  if (waiting) fan_out();
  while (answers--) send(fd, "HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 43, MSG_NOSIGNAL);
}

int main(int argc, char **argv) {
  int one = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listening, (void *)&at, sizeof at) || listen(listening, 4096)) { perror("listen"); return 1; }
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listening}, events[512];
  epoll_ctl(poll, EPOLL_CTL_ADD, listening, &event);
  for (;;) {
    int n = epoll_wait(poll, events, 512, -1);
    for (int e = 0; e < n; e++) {
      int fd = events[e].data.fd, new;
      while (fd == listening && (new = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        place[new] = -1;
        event.data.fd = new;
        epoll_ctl(poll, EPOLL_CTL_ADD, new, &event);
      }
      if (fd == listening) continue;
      ssize_t got = recv(fd, requests + held, sizeof requests - 1 - held, 0);
      if (got <= 0) { drop(fd); continue; }
      if (place[fd] >= 0) continue;
      requests[held + got] = 0;
      if (!held && !strncmp(requests, "GET ", 4)) { subscribe(fd); continue; }
      held += got;
      publish(fd);
    }
  }
}
