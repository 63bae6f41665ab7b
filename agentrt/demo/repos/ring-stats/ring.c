#include "ring.h"

void ring_push(struct ring *ring, double value)
{
    ring->value[ring->next] = value;
    ring->next = (ring->next + 1) % RING_SIZE;
    if (ring->count < RING_SIZE)
        ring->count++;
}
