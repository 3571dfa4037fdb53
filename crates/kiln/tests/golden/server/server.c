/* The application of the golden data root: a web server without a C library, so that its program is a few kB.
 * It answers `/ready` with its health and everything else with the release in its environment. */

typedef unsigned long word;

static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

enum { READ = 0, WRITE = 1, CLOSE = 3, SOCKET = 41, ACCEPT = 43, SENDTO = 44, BIND = 49, LISTEN = 50, SETSOCKOPT = 54, EXIT = 60 };
enum { MSG_NOSIGNAL = 0x4000 };

static word length(const char *text)
{
    word count = 0;
    while (text[count])
        count++;
    return count;
}

static void say(int to, const char *text)
{
    call(WRITE, to, (long)text, (long)length(text), 0, 0);
}

/* A probe that went away is no reason to end. */
static void answer(int to, const char *text)
{
    call(SENDTO, to, (long)text, (long)length(text), MSG_NOSIGNAL, 0);
}

static const char *value(char **environment, const char *name)
{
    word count = length(name);
    for (; *environment; environment++) {
        word same = 0;
        while (same < count && (*environment)[same] == name[same])
            same++;
        if (same == count && (*environment)[same] == '=')
            return *environment + count + 1;
    }
    return 0;
}

static int begins(const char *text, const char *with)
{
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

__attribute__((used)) void serve(word *stack)
{
    char **environment = (char **)(stack + 1 + stack[0] + 1);
    const char *release = value(environment, "RELEASE");
    int broken = value(environment, "BROKEN") != 0;
    struct {
        unsigned short family, port;
        unsigned int address;
        char zero[8];
    } here = {2, (3000 >> 8) | ((3000 & 255) << 8), 0, {0}};
    int one = 1;
    int listener = (int)call(SOCKET, 2, 1, 0, 0, 0);
    call(SETSOCKOPT, listener, 1, 2, (long)&one, sizeof one);
    if (call(BIND, listener, (long)&here, sizeof here, 0, 0) < 0 || call(LISTEN, listener, 64, 0, 0, 0) < 0) {
        say(2, "the port is taken\n");
        call(EXIT, 1, 0, 0, 0, 0);
    }
    say(1, "listening, release ");
    say(1, release ? release : "none");
    say(1, "\n");
    for (;;) {
        char request[4096];
        long peer = call(ACCEPT, listener, 0, 0, 0, 0);
        if (peer < 0)
            continue;
        long read = call(READ, peer, (long)request, sizeof request - 1, 0, 0);
        request[read > 0 ? read : 0] = 0;
        if (broken && begins(request, "GET /ready "))
            answer((int)peer, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        else {
            answer((int)peer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n");
            answer((int)peer, release ? release : "?");
            answer((int)peer, "\n");
        }
        if (!begins(request, "GET /ready "))
            say(1, "answered\n");
        call(CLOSE, peer, 0, 0, 0, 0);
    }
}

__asm__(".globl _start\n_start:\n    xor %ebp, %ebp\n    mov %rsp, %rdi\n    and $-16, %rsp\n    call serve\n");
