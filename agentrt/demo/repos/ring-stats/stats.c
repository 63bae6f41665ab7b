#include "stats.h"

#include <math.h>

double ring_mean(const struct ring *ring)
{
    double sum = 0;
    for (int i = 0; i < ring->count; i++)
        sum += ring->value[i];
    return ring->count ? sum / ring->count : 0;
}

double ring_deviation(const struct ring *ring)
{
    double mean = ring_mean(ring), sum = 0;
    for (unsigned i = 0; i < ring->count; i++)
        sum += (ring->value[i] - mean) * (ring->value[i] - mean);
    return ring->count ? sqrt(sum / ring->count) : 0;
}
