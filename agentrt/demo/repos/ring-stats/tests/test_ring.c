#include <stdio.h>

#include "../ring.h"
#include "../stats.h"

static int failed;

static void check(const char *what, double got, double want)
{
    double off = got - want;
    if (off > 1e-9 || off < -1e-9) {
        printf("FAIL %s: got %g, want %g\n", what, got, want);
        failed = 1;
    }
}

int main(void)
{
    struct ring ring = {{0}, 0, 0};
    check("mean of nothing", ring_mean(&ring), 0);
    check("deviation of nothing", ring_deviation(&ring), 0);
    for (int i = 1; i <= 3; i++)
        ring_push(&ring, i);
    check("mean of 1 2 3", ring_mean(&ring), 2);
    ring_push(&ring, 4);
    ring_push(&ring, 7);
    check("mean after the oldest left", ring_mean(&ring), 4);
    check("deviation of 2 3 4 7", ring_deviation(&ring) * ring_deviation(&ring), 3.5);
    puts(failed ? "tests failed" : "all tests passed");
    return failed;
}
